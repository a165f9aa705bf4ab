"""What has to be true of every state that a power loss leaves.

:func:`recover` opens a state as a user would, which repairs it, and holds it against the promise;
:func:`explore` does so for many states of a recording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import qedasync
from qedasync.engine.extents import ExtentKind
from qedasync.errors import QEDError
from qedasync.format.header import HEADER_BYTES, Header
from qedasync.image import Image
from qedasync.storage.crash import CrashPoint, CrashState, crash_points
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.crash.journal import Journal, Promise
from tests.crash.stage import CLUSTER, Recording

__all__ = ["CrashFailure", "Tally", "explore", "recover", "Sample"]

THOROUGH_EVERY = 16
"""Every so many states are also checked before the repair, and written to after it."""


class CrashFailure(AssertionError):
    """A state that broke its promise."""


@dataclass(slots=True, frozen=True, eq=False)
class Sample:
    """A recovered file, the state it was recovered from, and what it has to hold."""

    state: str
    recovered: SparseBytes
    promise: Promise


@dataclass(slots=True)
class Tally:
    """How much was looked at.

    Attributes:
        total: states made; some give the same file.
        dirty: of the different files, those that were not marked as cleanly closed.
        contents: hashes of the different files.
        samples: some of the recovered files.
    """

    total: int = 0
    dirty: int = 0
    contents: set[bytes] = field(default_factory=set)
    samples: list[Sample] = field(default_factory=list)

    def count(self, content: SparseBytes) -> bytes:
        """Count a state; answers the hash of its file."""
        digest = hashlib.sha1(bytes(content), usedforsecurity=False).digest()
        self.total += 1
        if digest not in self.contents:
            self.contents.add(digest)
            self.dirty += _header(content).need_check
        return digest


async def explore(
    recording: Recording, rng: Random, count: int, tally: Tally, *, samples: int = 0
) -> None:
    """Recover about ``count`` different states of a recording, spread over all of its moments.

    Args:
        samples: how many of the recovered files the tally is to hold.

    Raises:
        CrashFailure: a promise was broken; says how to make the state again.
    """
    seen: set[tuple[bytes, object]] = set()
    points = list(crash_points(recording.log, recording.base))
    sample_every = max(1, count // (2 * samples)) if samples else 0
    for left, point in zip(range(len(points), 0, -1), points, strict=True):
        promise = recording.journal.promise(point.cut)
        for state in _states(point, rng, -(-(count - len(seen)) // left)):
            content = state.content()
            digest = tally.count(content)
            if (digest, promise.key) in seen:
                continue
            seen.add((digest, promise.key))
            thorough = len(seen) % THOROUGH_EVERY == 0
            try:
                recovered = await recover(recording, content, promise, thorough=thorough)
            except CrashFailure as failure:
                failure.add_note(repr(state))
                raise
            if len(tally.samples) < samples and len(seen) % sample_every == 0:
                tally.samples.append(Sample(repr(state), recovered, promise))


def _states(point: CrashPoint, rng: Random, share: int) -> Iterator[CrashState]:
    """At least nothing and everything; all subsets where they are few; then by chance."""
    n = len(point.optional)
    yield point.state(())
    if n:
        yield point.state(range(n))
    if 1 << n <= share:
        for mask in range(1, (1 << n) - 1):
            yield point.state(i for i in range(n) if mask >> i & 1)
    if n:
        for _ in range(share - 2):
            yield point.random_state(rng)


async def recover(
    recording: Recording, content: SparseBytes, promise: Promise, *, thorough: bool = False
) -> SparseBytes:
    """Open the state, let it repair itself, and hold it against the promise.

    Args:
        thorough: also check the state as it is, which must not fail, and write to the recovered
            image, which must stay sound.

    Returns:
        the file after the repair and a clean close.

    Raises:
        CrashFailure: the promise is broken.
    """
    await _look_only(recording, content, check=thorough)
    storage = MemoryStorage(content.copy())
    step = "opening"
    try:
        async with await _open(recording, storage) as disk:
            step = "checking"
            await _check(disk)
            step = "reading"
            await _compare(recording.journal, disk, promise)
        recovered = storage.content.copy()
        if thorough:
            step = "writing on"
            await _write_on(recording, storage.copy())
    except QEDError as error:
        raise CrashFailure(f"{step} failed: {error!r}") from error
    if _header(recovered).need_check:
        raise CrashFailure("NEED_CHECK is still set after a clean close")
    return recovered


async def _open(
    recording: Recording, storage: MemoryStorage, mode: Literal["r", "r+"] = "r+"
) -> Image:
    return await qedasync.open(recording.path, mode, storage=storage, need_check_timeout=0)


async def _look_only(recording: Recording, content: SparseBytes, *, check: bool) -> None:
    """Read-only, nothing is repaired: an error is fine, any other exception is not."""
    storage = MemoryStorage(content.copy())
    try:
        async with await _open(recording, storage, "r") as disk:
            if check:
                await disk.check()
            for start, stop in recording.journal.touched():
                if start < disk.size:
                    await disk.pread(min(stop, disk.size) - start, start)
    except QEDError:
        pass
    if bytes(storage.content) != bytes(content):
        raise CrashFailure("opening it read-only changed the file")


async def _check(disk: Image) -> None:
    result = await disk.check()
    if result.corruptions or result.check_errors:
        raise CrashFailure(f"the repaired image is not sound: {result}")


async def _compare(journal: Journal, disk: Image, promise: Promise) -> None:
    if disk.size not in promise.sizes:
        raise CrashFailure(f"the image has {disk.size} bytes; allowed are {set(promise.sizes)}")
    untouched = 0
    for start, stop in journal.touched():
        await _expect_no_data(disk, untouched, start)
        untouched = stop
        stop = min(stop, disk.size)
        if start < stop:
            broken = promise.broken(start, await disk.pread(stop - start, start))
            if broken is not None:
                raise CrashFailure(broken)
    await _expect_no_data(disk, untouched, disk.size)


async def _expect_no_data(disk: Image, start: int, stop: int) -> None:
    stop = min(stop, disk.size)
    if start >= stop:
        return
    for extent in await disk.block_status(start, stop - start):
        if extent.kind is ExtentKind.DATA:
            raise CrashFailure(f"data where nobody wrote: {extent}")


async def _write_on(recording: Recording, storage: MemoryStorage) -> None:
    """The recovered image takes writes everywhere, and stays sound."""
    async with await _open(recording, storage) as disk:
        wanted = {}
        for start, stop in recording.journal.touched():
            for pos in range(start, min(stop, disk.size), CLUSTER):
                data = pos.to_bytes(8, "big") * (min(CLUSTER, disk.size - pos) // 8)
                await disk.pwrite(data, pos)
                wanted[pos] = data
        await _check(disk)
        for pos, data in wanted.items():
            if await disk.pread(len(data), pos) != data:
                raise CrashFailure(f"what was written at {pos} after the repair reads differently")


def _header(content: SparseBytes) -> Header:
    head = bytearray(HEADER_BYTES)
    content.read_into(head, 0)
    return Header.parse(head)
