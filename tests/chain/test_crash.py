"""A power loss at any moment of a job: all files together read what was promised.

Each file has a recorder of its own, all with one clock, so that a flush of one file promises
nothing about another. A state is a moment and, for each file, what of its unflushed changes reached
the disk. It is opened as it is, read-only, with the file that the header names by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from qedasync.errors import QEDError
from qedasync.storage.base import Storage
from qedasync.storage.crash import CrashPoint, CrashState, crash_points
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.recorder import Record, RecorderStorage
from tests.chain.stack import (
    CASES,
    Case,
    header_of,
    jittery,
    make,
    open_stack,
    run_job,
)
from tests.chain.test_faults import at_full_speed
from tests.crash.journal import Journal
from tests.crash.stage import Stage

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

PER_CUT = 8


class SharedRecorder(RecorderStorage):
    """A recorder on a clock that others use too."""

    def __init__(self, inner: Storage, base: SparseBytes, clock: Iterator[int]) -> None:
        super().__init__(inner, base)
        self._clock = clock

    def _tick(self) -> int:
        self.position = next(self._clock)
        return self.position


class Recording:
    """A job with users at work, and what became of the files."""

    def __init__(self, case: Case, seed: int, directory: Path) -> None:
        self.case = case
        self.rng = Random(seed)
        self.stage = Stage(directory, seed)
        self.recorders: dict[str, SharedRecorder] = {}
        self.job: tuple[int, int] = (0, 0)

    @property
    def journal(self) -> Journal:
        return self.stage.journal

    async def run(self) -> None:
        files, expected = await make(self.case)
        clock = count()
        self.recorders = {
            name: SharedRecorder(jittery(content, self.rng), content.copy(), clock)
            for name, content in files.items()
        }
        top = self.recorders["top"]
        disk = await open_stack(self.case, self.recorders)
        self.stage.journal = Journal(top, expected, self.case.size)
        await self.stage.busy(disk, users=2, calls=2)
        begin = top.mark().begin
        job = asyncio.create_task(run_job(self.case, disk, self.recorders, tasks=2))
        await self.stage.busy(disk, users=2, calls=4)
        await job
        self.job = begin, top.mark().begin
        await self.stage.busy(disk, users=2, calls=3)
        await self.journal.close(disk)

    def states(self) -> Iterator[tuple[int, dict[str, CrashState]]]:
        logs: dict[str, list[Record]] = {name: each.log for name, each in self.recorders.items()}
        last = max(each.position for each in self.recorders.values())
        cuts = range(last + 2)
        points = {n: crash_points(logs[n], self.recorders[n].base, cuts) for n in logs}
        for cut in cuts:
            now = {name: next(each) for name, each in points.items()}
            for number in range(PER_CUT):
                yield cut, {name: self._state(point, number) for name, point in now.items()}

    def _state(self, point: CrashPoint, number: int) -> CrashState:
        """Nothing, everything, or something of what may have reached the disk."""
        everything = range(len(point.optional))
        if number < 2:
            return point.state(everything if number else ())
        match self.rng.randrange(4):
            case 0:
                return point.state(())
            case 1:
                return point.state(everything)
            case _:
                return point.random_state(self.rng)


async def read_state(case: Case, files: dict[str, SparseBytes], *, repair: bool) -> bytes:
    storages = {name: MemoryStorage(content) for name, content in files.items()}
    name = header_of(files["top"])[1]
    mode: Literal["r", "r+"] = "r+" if repair else "r"
    async with await open_stack(case, storages, base=name, base_mode="r", mode=mode) as disk:
        assert not (await disk.check()).corruptions
        return bytes(await disk.pread(disk.size, 0))


@each_case
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]
)
async def test_job_crashed_anywhere_reads_what_was_promised(
    case: Case, seed: int, tmp_path: Path
) -> None:
    with at_full_speed():
        recording = Recording(case, seed, tmp_path)
        await recording.run()
        names = set()
        seen = set()
        for cut, states in recording.states():
            files = {name: state.content() for name, state in states.items()}
            promise = recording.journal.promise(cut)
            key = (*(bytes(content) for content in files.values()), promise.key)
            if key in seen:
                continue
            seen.add(key)
            names.add(header_of(files["top"])[1])
            # Without a backing file an image relies on NEED_CHECK, that is on a repair.
            repair = header_of(files["top"])[0].need_check
            where = f"{case.name}, seed {seed}, job {recording.job}, {states}"
            try:
                broken = promise.broken(0, await read_state(case, files, repair=repair))
            except QEDError as error:
                raise AssertionError(where) from error
            assert broken is None, f"{broken}: {where}"
        assert len(seen) > 90
        assert len(names) == (2 if case.job == "rebase" else 1)
