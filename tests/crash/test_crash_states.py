"""A power loss at any moment: the image opens, repairs itself and has all that was promised.

More than 20 000 different files in the normal run. For a million of them, on all cores::

    QEDASYNC_CRASH_STATES=1000000 python -m pytest -m slow -n auto tests/crash

The states of a scenario are recovered on one event loop, without its debug mode: tens of thousands
of images are opened here, and other tests look for slow callbacks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvloop

from tests.crash.recovery import Sample, Tally, explore
from tests.crash.scenarios import SCENARIOS, Play, perform
from tests.crash.stage import Stage

STATES: dict[str, int] = {
    "mixed": 3500,
    "many_tables": 2500,
    "overlay_on_raw": 1500,
    "overlay_on_qed": 1500,
    "growing": 2000,
    "growing_under_backing": 1000,
    "quiet_times": 1500,
    "writing_through": 1000,
    "repairing": 1500,
    "unchecked": 700,
    "mending": 800,
    "giving_up": 1000,
    "failing": 2000,
    "losing_a_flush": 1000,
}
"""Different files that each scenario must give at least, in the normal run."""

RECORDINGS = 2
"""About how many runs of a scenario these come from; each gives two samples to QEMU."""

SAMPLES = 2
WANTED = int(os.environ.get("QEDASYNC_CRASH_STATES", "1000000"))


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(debug=False, loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def play_and_explore(
    play: Play, directory: Path, seed: int, count: int, tally: Tally, samples: int = 0
) -> None:
    recording = await perform(play, Stage(directory, seed))
    try:
        await explore(recording, Random(seed), count, tally, samples=samples)
    except AssertionError as failure:
        failure.add_note(f"scenario {play.__name__!r}, seed {seed}, count {count}")
        raise


def test_crash_scenarios_together_give_20000_states() -> None:
    assert STATES.keys() == SCENARIOS.keys()
    assert sum(STATES.values()) >= 20_000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SCENARIOS)
def test_crash_anywhere_recovers_what_was_promised(name: str, tmp_path: Path) -> None:
    tally = Tally()
    seed = 0
    while len(tally.contents) < STATES[name]:
        missing = STATES[name] - len(tally.contents)
        count = max(200, min(missing, STATES[name] // RECORDINGS) * 5 // 4)
        run(play_and_explore(SCENARIOS[name], tmp_path, seed, count, tally, SAMPLES))
        verify_with_qemu(tally, tmp_path)
        seed += 1
    print(f"{name}: {tally.total} states, {len(tally.contents)} different, {seed} recordings")


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", SCENARIOS)
def test_crash_anywhere_in_a_million_states(name: str, tmp_path: Path) -> None:
    tally = Tally()
    seed = 1000
    while len(tally.contents) * len(SCENARIOS) < WANTED:
        run(play_and_explore(SCENARIOS[name], tmp_path, seed, 2000, tally))
        seed += 1


def verify_with_qemu(tally: Tally, directory: Path) -> None:
    """The recovered samples are sound for QEMU too, and it reads what was promised."""
    assert len(tally.samples) == SAMPLES
    while tally.samples:
        sample = tally.samples.pop()
        if shutil.which("qemu-img") is not None:
            verify_sample_with_qemu(sample, directory)


def verify_sample_with_qemu(sample: Sample, directory: Path) -> None:
    path, raw = directory / "disk.qed", directory / "disk.raw"
    path.write_bytes(bytes(sample.recovered))
    check = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True)
    assert check.returncode in (0, 3), f"{sample.state}: {check.stdout}{check.stderr}"
    subprocess.run(["qemu-img", "convert", "-f", "qed", "-O", "raw", path, raw], check=True)
    assert raw.stat().st_size in sample.promise.sizes
    broken = sample.promise.broken(0, raw.read_bytes())
    assert broken is None, f"{sample.state}: QEMU reads: {broken}"
