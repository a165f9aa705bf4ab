"""Where a scenario plays: an image over a recorder, with slow storage, a clock and chance.

The storage below the recorder takes a random number of loop turns for each call, so the calls of
concurrent tasks overlap in the log as they do on a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import qedasync
from qedasync.errors import QEDError
from qedasync.format.header import HEADER_BYTES, encode_backing_name, new_header
from qedasync.image import Image
from qedasync.storage.base import Storage
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.recorder import Record, RecorderStorage
from tests.crash.journal import Journal

__all__ = ["Stage", "Recording", "HandClock", "empty_image", "Wrap", "CLUSTER", "SPAN"]

CLUSTER = 4096
TABLE_CLUSTERS = 2  # QEMU opens nothing smaller
SPAN = TABLE_CLUSTERS * CLUSTER // 8 * CLUSTER
"""Guest bytes of one L2 table."""

Wrap = Callable[["Stage", Storage], Storage]


def empty_image(size: int, *, backing: str | None = None, raw: bool = True) -> SparseBytes:
    """An image without any data, small clusters."""
    header = new_header(size, CLUSTER, TABLE_CLUSTERS, backing, raw and backing is not None)
    content = SparseBytes(header.pack())
    if backing is not None:
        content.write(encode_backing_name(backing), HEADER_BYTES)
    content.resize((1 + TABLE_CLUSTERS) * CLUSTER)
    return content


class HandClock:
    """A clock that stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, waiter))
        await waiter

    def advance(self, seconds: float) -> None:
        """Move on and wake who is due."""
        self.now += seconds
        due = [waiter for when, waiter in self._sleepers if when <= self.now]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > self.now]
        for waiter in due:
            if not waiter.done():
                waiter.set_result(None)


@dataclass(slots=True, frozen=True, eq=False)
class Recording:
    """What a scenario left: the log, and what the user was promised.

    Attributes:
        path: the image's name; its backing file lies beside it.
        base: the image file at the start.
        log, journal: since then.
    """

    path: Path
    base: SparseBytes
    log: Sequence[Record]
    journal: Journal


class Stage:
    """Opens an image for a scenario and keeps what it leaves.

    Args:
        directory: for backing files.
        seed: of everything that happens by chance.
        wrap: puts something between the engine and the recorder; to break the engine's order.
    """

    def __init__(self, directory: Path, seed: int, wrap: Wrap | None = None) -> None:
        self.rng = Random(seed)
        self.path = directory / "disk.qed"
        self.clock = HandClock()
        self.journal: Journal
        self.base: SparseBytes
        self._wrap = wrap

    async def open(
        self,
        base: SparseBytes,
        initial: bytes,
        size: int,
        *faults: Fault,
        watch: Sequence[tuple[int, int]] = (),
        need_check_timeout: float = 0,
        cache: Any = "writeback",
        check: Any = "auto",
    ) -> Image:
        """Open the image whose file is ``base`` and whose guest reads ``initial``."""
        self.base = base.copy()
        slow = FaultStorage(
            MemoryStorage(base),
            Fault("delay", seconds=0, once=False),
            *faults,
            sleep=lambda _: self.some_turns(3),
        )
        recorder = RecorderStorage(slow, self.base)
        through = cache == "writethrough"
        self.journal = Journal(recorder, initial, size, write_through=through, watch=watch)
        return await qedasync.open(
            self.path,
            "r+",
            storage=recorder if self._wrap is None else self._wrap(self, recorder),
            cache=cache,
            check=check,
            need_check_timeout=need_check_timeout,
            clock=self.clock,
        )

    def recording(self) -> Recording:
        return Recording(self.path, self.base, self.journal.recorder.log, self.journal)

    async def some_turns(self, most: int) -> None:
        """Give the loop up to ``most`` turns."""
        for _ in range(self.rng.randint(0, most)):
            await asyncio.sleep(0)

    # ------------------------------------------------------------------- users

    async def busy(
        self,
        disk: Image,
        *,
        users: int,
        calls: int,
        spots: Sequence[int] = (),
        spread: int = 0,
        quiet: bool = False,
    ) -> None:
        """Some users at once, each with some calls of any kind and size, overlapping.

        Args:
            spots: guest positions they work around; anywhere if none.
            spread: how far from a spot.
            quiet: without flushes.
        """

        async def user() -> None:
            for _ in range(calls):
                spot = self.rng.choice(spots) if spots else 0
                start = max(0, spot - spread)
                stop = min(disk.size, spot + spread) if spots else disk.size
                await self._call(disk, start, stop, quiet)

        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(user())

    async def _call(self, disk: Image, start: int, stop: int, quiet: bool) -> None:
        """One call; an error is fine, and promises nothing."""
        rng, journal = self.rng, self.journal
        grain = rng.choice((1, 512, 512, CLUSTER))
        pos = rng.randrange(start, stop) // grain * grain
        length = min(rng.randint(1, 3 * CLUSTER // grain) * grain, stop - pos)
        kind = rng.choices(("write", "zero", "discard", "flush"), (60, 20, 5, 0 if quiet else 15))
        try:
            match kind[0]:
                case "write":
                    await journal.write(disk, rng, pos, length)
                case "zero":
                    await journal.zero(disk, pos, length)
                case "discard":
                    await journal.discard(disk, pos, length)
                case _:
                    await journal.flush(disk)
        except QEDError:
            pass
