"""What is done to each hostile image: everything a user does, with an eye on what it may not do.

Whatever is wrong raises :class:`Broken`; every other exception that is not a ``QEDError`` is wrong
as well, for whoever called to find out.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import qedasync
from qedasync import Extent, Image, QEDError, StorageError
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.hostile.meter import Meter
from tests.quirks.images import write_file

__all__ = ["Broken", "Kind", "Mode", "exercise", "exercise_file"]

Mode: TypeAlias = Literal["r", "r+"]
Kind: TypeAlias = Literal["posix", "aiofiles", "memory"]

ONE_READ = 16 << 20
"""Bytes that may be asked for at once: the largest L1 there can be."""

MOST_READ = {
    "open": ONE_READ + (8 << 10),
    "extents": 96 << 20,
    "check": 512 << 20,
    "repair": 512 << 20,
}
"""Bytes that an operation may read: tables may be of 16 MiB each. ``FEW`` for the others."""

FEW = 2 << 20

_EXTENTS = 100
_WALK_READS = 600
_PIECE = 8 << 10


class Broken(AssertionError):
    """An image has done what none may do."""


def expect(truth: object, what: str) -> None:
    if not truth:
        raise Broken(what)


async def exercise(content: SparseBytes, path: Path, mode: Mode, seed: int) -> Counter[str]:
    """Use a copy of an image in memory.

    Args:
        path: where the image says it is; backing names start there.

    Returns: how often each thing ended how.
    """
    outcome: Counter[str] = Counter()
    meter = Meter(MemoryStorage(content.copy()))
    repairing = bool(mode == "r+" and _features(content) & 2)
    opened = False
    try:
        async with qedasync.open(path, mode, storage=meter) as disk:
            opened = True
            expect(repairing or meter.bytes_read <= MOST_READ["open"], "open read too much")
            outcome[f"opened {mode}"] += 1
            await _Use(disk, random.Random(seed), outcome, meter).everything()
    except QEDError as error:
        outcome[f"{mode}: {type(error).__name__}"] += 1
        if not opened:
            mending = "cannot be repaired" in str(error) or isinstance(error, StorageError)
            expect((repairing and mending) or not meter.changes, "a failing open wrote")
    expect(meter.closed, "the storage was left open")
    expect(mode == "r+" or not meter.changes, "a read-only image was written")
    expect(meter.longest <= ONE_READ, f"{meter.longest} bytes asked for at once")
    return outcome


async def exercise_file(
    content: SparseBytes, path: Path, mode: Mode, seed: int, storage: Kind
) -> Counter[str]:
    """Use an image that is a file; while it cannot be opened, or only be read, it must not change.

    Without a walk through all of it: not every storage knows where holes are.
    """
    outcome: Counter[str] = Counter()
    write_file(path, content)
    os.utime(path, ns=(_LONG_AGO, _LONG_AGO))
    untouched = True
    try:
        async with qedasync.open(path, mode, storage=storage) as disk:
            untouched = mode == "r" or storage == "memory"
            outcome[f"opened {storage} {mode}"] += 1
            await _Use(disk, random.Random(seed), outcome).everything()
    except QEDError as error:
        outcome[f"{storage} {mode}: {type(error).__name__}"] += 1
        untouched = untouched and "cannot be repaired" not in str(error)
    same = path.stat().st_mtime_ns == _LONG_AGO
    path.unlink()
    expect(same or not untouched, f"the file was written by mode {mode}")
    return outcome


_LONG_AGO = 10**18


def _features(content: SparseBytes) -> int:
    raw = bytearray(8)
    content.read_into(raw, 16)
    return int.from_bytes(raw, "little")


class _Use:
    """What is done to an image that could be opened."""

    def __init__(
        self, disk: Image, rng: random.Random, outcome: Counter[str], meter: Meter | None = None
    ) -> None:
        self._disk = disk
        self._rng = rng
        self._outcome = outcome
        self._meter = meter

    async def everything(self) -> None:
        disk = self._disk
        expect(0 <= disk.size < 1 << 63, f"{disk.size} bytes")
        if disk.readonly or self._rng.random() < 0.2:
            await self._walk()
            await self._tried(disk.check(), "check")
        for pos in self._places():
            await self._read(pos, min(_PIECE, disk.size - pos))
        if disk.readonly:
            await self._tried(disk.pwrite(b"no", 0), "pwrite")
            return
        await self._write()
        if self._rng.random() < 0.5:
            await self._repair()
            await self._write()
        await self._walk()

    def _places(self) -> list[int]:
        """The start, the end, and somewhere."""
        last, rng = self._disk.size - 1, self._rng
        if last < 0:
            return []
        somewhere = [rng.randint(0, last), rng.randint(0, min(last, 1 << 24))]
        return [0, max(0, last - _PIECE), last, *somewhere]

    async def _tried(self, work: Awaitable[Any], what: str) -> Any:
        """The result; None, and a note, for an error that is one of ours."""
        meter = self._meter
        before = meter.bytes_read if meter is not None else 0
        try:
            return await work
        except QEDError as error:
            self._outcome[f"{what}: {type(error).__name__}"] += 1
            return None
        finally:
            if meter is not None:
                most = MOST_READ.get(what, FEW)
                cost = meter.bytes_read - before
                expect(cost <= most, f"{what} read {cost} bytes")

    async def _read(self, pos: int, length: int) -> None:
        data = await self._tried(self._disk.pread(length, pos), "pread")
        expect(data is None or len(data) == length, "a short read")
        runs = await self._tried(self._disk.block_status(pos, length), "block_status")
        expect(runs is None or sum(run.length for run in runs) == length, f"{length}: {runs}")

    async def _walk(self) -> None:
        """The first extents; an image that says next to nothing in many tables takes long."""
        if self._meter is None:
            return
        found: list[Extent] = []
        extents = cast("AsyncGenerator[Extent, None]", self._disk.extents())
        async with aclosing(extents):
            with self._meter.only(_WALK_READS):
                while len(found) < _EXTENTS:
                    extent = await self._tried(anext(extents, None), "extents")
                    if extent is None:
                        break
                    found.append(extent)
        expect(all(extent.length > 0 for extent in found), "an empty extent")
        expect(all(a.end == b.start for a, b in pairwise(found)), "a gap between extents")
        expect(not found or found[0].start == 0, "the first extent is not at the start")

    async def _write(self) -> None:
        """Write at a few places; what was written is read again at once."""
        disk, rng = self._disk, self._rng
        for pos in self._places():
            room = disk.size - pos
            if rng.random() < 0.6:
                room = min(room, disk.cluster_size - pos % disk.cluster_size)
            data = rng.randbytes(min(rng.randint(1, _PIECE), room))
            written = await self._tried(disk.pwrite(data, pos), "pwrite")
            # Two clusters of a write may be one and the same in the file; a part of one is not.
            if written and (pos + written - 1) // disk.cluster_size == pos // disk.cluster_size:
                expect(await disk.pread(len(data), pos) == data, f"the write at {pos} is lost")
        for pos in self._places()[:3]:
            length = min(3 * disk.cluster_size, 1 << 16, disk.size - pos)
            if await self._tried(self._zero(length, pos), "write_zeroes"):
                expect(not any(await disk.pread(length, pos)), f"the zeroes at {pos} are none")
            await self._tried(disk.discard(length, pos), "discard")
        await self._tried(disk.flush(), "flush")

    async def _zero(self, length: int, pos: int) -> bool:
        await self._disk.write_zeroes(length, pos)
        return True

    async def _repair(self) -> None:
        result = await self._tried(self._disk.check(repair=True), "repair")
        if result is None:
            return
        again = await self._tried(self._disk.check(), "check")
        if again is not None:
            left = (result.corruptions, result.check_errors)
            expect(left == (again.corruptions, again.check_errors), f"{result}\n{again}")
            self._outcome["repaired" if again.ok else "not repairable"] += 1
