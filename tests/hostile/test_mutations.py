"""Thousands of hostile images, used in other processes: nothing but a ``QEDError`` comes out.

Each is opened read-only and for writing, checked, walked, read, written and every other time
repaired; some as files. The processes watch their memory, their time and the files they open.
For more images: ``HOSTILE_IMAGES=100000 pytest -m slow tests/hostile -s``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.bases import furnish
from tests.hostile.mutants import FAMILIES, NAMES

ROOT = Path(__file__).parent.parent.parent

IMAGES = 5_200
MANY = int(os.environ.get("HOSTILE_IMAGES", "30000"))

MEMORY = 64 << 20
"""Bytes that an image may cost."""

_WORKERS = 2

# glibc keeps up to twice the largest block that was ever freed, unless these are set.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def use_images(folder: Path, first: int, stop: int, seconds: float) -> list[dict[str, Any]]:
    """Use the images from ``first`` on, divided among processes; what each process saw."""
    workers = [_start(folder / str(n), range(first + n, stop, _WORKERS)) for n in range(_WORKERS)]
    try:
        return [_report(worker, seconds) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _start(folder: Path, numbers: range) -> subprocess.Popen[bytes]:
    images = furnish(folder)
    which = map(str, (numbers.start, numbers.stop, numbers.step))
    command: Sequence[str | Path] = [sys.executable, "-m", "tests.hostile.worker", images, *which]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | _RETURN_MEMORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _report(worker: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    said, complained = worker.communicate(timeout=seconds)
    assert worker.returncode == 0, complained.decode()
    report: dict[str, Any] = json.loads(said)
    return report


def examine(reports: list[dict[str, Any]], count: int) -> None:
    """Fail unless all went well; print the numbers."""
    failures = [failure for report in reports for failure in report["failures"]]
    assert not failures, "\n\n".join(failures)
    images, outcomes = (
        sum((Counter(report[name]) for report in reports), Counter[str]())
        for name in ("images", "outcomes")
    )
    most, dearest = max((report["growth"], report["growth_by"]) for report in reports)
    longest, slowest = max((report["seconds"], report["seconds_by"]) for report in reports)
    print(f"\n{images.total()} hostile images: {dict(images)}")
    print(f"at most {most >> 20} MiB ({dearest}), {longest:.2f} s ({slowest})")
    print(dict(outcomes.most_common(20)))
    assert images.total() == count
    assert images.keys() == FAMILIES.keys()
    assert most <= MEMORY, dearest
    assert [path for report in reports for path in report["outside"]] == []
    for often in ("opened r", "opened r+", "opened posix r+", "repaired", "r: HeaderError"):
        assert outcomes[often] > count // 200, f"{often} is rare: {outcomes}"
    for seen in ("r: BackingRefused", "pread: CorruptTable", "pwrite: CorruptTable"):
        assert outcomes[seen], f"no {seen}: {outcomes}"


@pytest.mark.timeout(300)
def test_hostile_images_5000_raise_nothing_but_our_errors(tmp_path: Path) -> None:
    assert IMAGES // len(FAMILIES) > 4 * len(NAMES)  # each name has its turns
    examine(use_images(tmp_path, 0, IMAGES, 280), IMAGES)


@pytest.mark.slow
@pytest.mark.timeout(MANY)
def test_hostile_images_many_more_raise_nothing_but_our_errors(tmp_path: Path) -> None:
    examine(use_images(tmp_path, IMAGES, IMAGES + MANY, MANY), MANY)
