"""The process that hostile images are used in: what happens to it happens to no test.

It has a wall around its memory and its processor time, writes down every file that is opened, and
says at the end what it saw, as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.hostile.bases import make_bases
from tests.hostile.exercise import Kind, Mode, exercise, exercise_file
from tests.hostile.mutants import Hostile, hostile
from tests.hostile.watch import outside, watch

__all__ = ["Report"]

WALL = 512 << 20
"""Bytes of address space above what an idle worker has; threads' stacks count too."""

PROCESSOR_SECONDS = 10.0
"""What an image may take before it is called a hang: five times what it should at the most."""

_FILE_EVERY = 9  # every so often an image is a file
_LARGEST_FILE = 1 << 40
_MODES: tuple[Mode, ...] = ("r", "r+")
_LOOK_AGAIN = 60 << 20  # bytes; what an image took is measured once more

_KINDS: tuple[Kind, ...] = ("posix", "posix", "aiofiles", "memory")


@dataclass(slots=True)
class Report:
    """What a worker saw.

    Attributes:
        images: how many it has used, by family.
        outcomes: how things ended.
        growth: bytes of memory beyond what there was before an image, at most.
        seconds: of processor time, for the most expensive image.
        failures: what was wrong.
        outside: files that were opened and should not have been.
    """

    images: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    growth: int = 0
    growth_by: str = ""
    seconds: float = 0.0
    seconds_by: str = ""
    failures: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


class Gauge:
    """The memory that the process takes up; opens no file while images are used."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY)
        # Free memory goes back to the host first, or what one image leaves hides the next one's.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._idle = self._program = 0

    def read(self, name: str) -> int:
        """A line of the status in bytes: ``VmSize``, ``VmRSS``, ``VmHWM`` (the most there was)."""
        for line in os.pread(self._status, 1 << 16, 0).decode().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
        raise KeyError(name)

    def begin(self) -> None:
        """From here on :meth:`growth` counts; what earlier images have left behind is gone."""
        gc.collect()
        if self._trim is not None:
            self._trim(0)
        os.write(self._reset, b"5")
        self._idle, self._program = self.read("VmRSS"), self.read("RssFile")

    def growth(self) -> int:
        """Bytes in use at most since :meth:`begin`, beyond what there was.

        Pages of the interpreter's own files do not count: a host short of memory takes them away
        and brings them back as it likes.
        """
        came_back = max(0, self.read("RssFile") - self._program)
        return self.read("VmHWM") - self._idle - came_back


class TooLong(BaseException):
    """An image has had its time; no handler of errors may catch this."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


async def _run(images: Path, numbers: range, report: Report) -> None:
    signal.signal(signal.SIGPROF, _stop)
    bases = await make_bases(images)
    for warm_up in range(0, 400, 7):  # whatever is imported late
        for mode in _MODES:
            await _use(hostile(warm_up, bases), warm_up, images, mode, Report())
    gc.collect()
    gc.freeze()  # what there is now need not be looked at again and again
    gauge = Gauge()
    wall = gauge.read("VmSize") + WALL
    resource.setrlimit(resource.RLIMIT_AS, (wall, wall))
    for number in numbers:
        image = hostile(number, bases)
        for mode in _MODES:
            await _watch(image, number, images, mode, report, gauge)
        report.images[image.family] += 1
        if len(report.failures) >= 20:
            break


async def _watch(
    image: Hostile, number: int, images: Path, mode: Mode, report: Report, gauge: Gauge
) -> None:
    for _ in range(2):  # on a busy host now and then one comes out 8 MiB higher
        gauge.begin()
        began = time.process_time()
        with watch().looking() as seen:
            await _use(image, number, images, mode, report)
        growth, seconds = gauge.growth(), time.process_time() - began
        if growth <= _LOOK_AGAIN:
            break
    report.outside += [f"{image.what}: {path}" for path in outside(seen, images)]
    if growth > report.growth:
        report.growth, report.growth_by = growth, image.what
    if seconds > report.seconds:
        report.seconds, report.seconds_by = seconds, image.what


async def _use(image: Hostile, number: int, images: Path, mode: Mode, report: Report) -> None:
    content, path = image.content, images / "self.qed"
    try:
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
        if number % _FILE_EVERY == 0 and content.size < _LARGEST_FILE:
            kind = _KINDS[number // _FILE_EVERY % len(_KINDS)]
            report.outcomes += await exercise_file(content, path, mode, number, kind)
        else:
            report.outcomes += await exercise(content, path, mode, number)
    except (Exception, TooLong) as error:
        last = "".join(traceback.format_exception(error)[-6:])
        report.failures.append(f"{image.what}, mode {mode}\n{last}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """``worker.py FOLDER FIRST STOP STEP``"""
    images, numbers = Path(sys.argv[1]), range(*map(int, sys.argv[2:5]))
    report = Report()
    asyncio.run(_run(images, numbers, report))
    json.dump({name: getattr(report, name) for name in report.__slots__}, sys.stdout)


if __name__ == "__main__":
    main()
