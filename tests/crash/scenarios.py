"""What is going on when the power goes: one coroutine a scenario."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import qedasync
from qedasync.errors import QEDError
from qedasync.events import Event
from qedasync.format.header import Features
from qedasync.storage.crash import CrashPoint, crash_points
from qedasync.storage.faults import Fault
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.crash.stage import CLUSTER, SPAN, Recording, Stage, empty_image

__all__ = ["SCENARIOS", "Play"]

KIB = 1 << 10
SIZE = 96 * KIB
ODD_SIZE = 45 * KIB + 512  # ends inside a cluster

Play = Callable[[Stage], Awaitable[None]]


async def mixed(stage: Stage) -> None:
    """Writes of all sizes, zeroes, discards and flushes into an empty image."""
    disk = await stage.open(empty_image(SIZE), b"", SIZE)
    await stage.busy(disk, users=8, calls=5)
    await stage.journal.close(disk)


async def many_tables(stage: Stage) -> None:
    """The same around the borders of L2 tables."""
    size = 2 * SPAN + ODD_SIZE
    disk = await stage.open(empty_image(size), b"", size)
    await stage.busy(disk, users=5, calls=6, spots=(SPAN, 2 * SPAN, size), spread=4 * CLUSTER)
    await stage.journal.close(disk)


async def overlay_on_raw(stage: Stage) -> None:
    """Over a raw backing file that is shorter and ends inside a cluster."""
    backing = stage.rng.randbytes(SIZE // 2 + 1536)
    (stage.path.parent / "base.raw").write_bytes(backing)
    disk = await stage.open(empty_image(SIZE, backing="base.raw"), backing, SIZE)
    await stage.busy(disk, users=5, calls=7)
    await stage.journal.close(disk)


async def overlay_on_qed(stage: Stage) -> None:
    """Over another image, longer than this one."""
    backing = await _qed_backing(stage, SIZE)
    base = empty_image(ODD_SIZE, backing="base.qed", raw=False)
    disk = await stage.open(base, backing[:ODD_SIZE], ODD_SIZE)
    await stage.busy(disk, users=5, calls=7)
    await stage.journal.close(disk)


async def _qed_backing(stage: Stage, size: int) -> bytes:
    """Make ``base.qed``, data and zeroes in turns; answers what its guest reads."""
    content = bytearray(size)
    storage = MemoryStorage(empty_image(size))
    async with qedasync.open("base.qed", "r+", storage=storage) as disk:
        for pos in range(0, size, 3 * CLUSTER):
            data = stage.rng.randbytes(CLUSTER + 512)
            content[pos : pos + len(data)] = data
            await disk.pwrite(data, pos)
    (stage.path.parent / "base.qed").write_bytes(storage.snapshot())
    return bytes(content)


async def growing(stage: Stage) -> None:
    """Grows again and again while others write."""
    disk = await stage.open(empty_image(ODD_SIZE), b"", ODD_SIZE)
    await _grow_and_write(stage, disk)
    await stage.journal.close(disk)


async def growing_under_backing(stage: Stage) -> None:
    """Grows under a longer backing file, which must not show in the new part."""
    backing = stage.rng.randbytes(SIZE)
    (stage.path.parent / "base.raw").write_bytes(backing)
    base = empty_image(ODD_SIZE, backing="base.raw")
    disk = await stage.open(base, backing[:ODD_SIZE], ODD_SIZE)
    await _grow_and_write(stage, disk)
    await stage.journal.close(disk)


async def _grow_and_write(stage: Stage, disk: qedasync.Image) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.busy(disk, users=3, calls=9))
        for step in (512, CLUSTER, 9 * KIB, 17 * KIB):
            await stage.journal.grow(disk, disk.size + step)


async def quiet_times(stage: Stage) -> None:
    """The need-check timer fires between and during writes."""
    disk = await stage.open(empty_image(SIZE), b"", SIZE, need_check_timeout=5)
    for _ in range(4):
        await stage.busy(disk, users=2, calls=3)
        stage.clock.advance(6)
        await stage.busy(disk, users=2, calls=2)
        stage.clock.advance(6)
        await stage.some_turns(60)
    await stage.journal.close(disk)


async def writing_through(stage: Stage) -> None:
    """Every write is durable when it returns."""
    disk = await stage.open(empty_image(SIZE), b"", SIZE, cache="writethrough")
    await stage.busy(disk, users=4, calls=5)
    await stage.journal.close(disk)


async def repairing(stage: Stage) -> None:
    """An image that a crash left dirty is opened, repaired and written at once."""
    point = await _wreckage(stage)
    await _use_wreck(stage, point.random_state(stage.rng).content())


async def unchecked(stage: Stage) -> None:
    """The same without a repair; all metadata is there, so there is nothing to repair."""
    point = await _wreckage(stage)
    await _use_wreck(stage, point.state(range(len(point.optional))).content(), check="never")


async def _wreckage(stage: Stage) -> CrashPoint:
    """A moment in the middle of much writing."""
    disk = await stage.open(empty_image(SIZE), b"", SIZE)
    await stage.busy(disk, users=6, calls=5, quiet=True)
    recorder = stage.journal.recorder
    cut = stage.rng.randrange(recorder.position * 3 // 4, recorder.position)
    (point,) = crash_points(recorder.log, recorder.base, [cut])
    await disk.close()
    return point


async def _use_wreck(stage: Stage, wreck: SparseBytes, check: Any = "auto") -> None:
    """Open it as it is, with part of a cluster behind it that is not zeroes, and write."""
    wreck.write(stage.rng.randbytes(CLUSTER - 512), wreck.size)
    async with qedasync.open(stage.path, "r+", storage=MemoryStorage(wreck.copy())) as found:
        initial = bytes(await found.pread(SIZE, 0))
    disk = await stage.open(wreck, initial, SIZE, check=check)
    await stage.busy(disk, users=4, calls=6)
    await stage.journal.close(disk)


async def mending(stage: Stage) -> None:
    """A dirty image with all that a repair mends: shared tables and clusters, leaks, and more."""
    size = SPAN + SIZE
    wreck = await _damaged(stage, size)
    async with qedasync.open(stage.path, "r+", storage=MemoryStorage(wreck.copy())) as mended:
        initial = bytes(await mended.pread(size, 0))
    disk = await stage.open(wreck, initial, size, watch=[(0, SIZE), (SPAN, size)])
    await stage.busy(disk, users=3, calls=4, spots=(0, SPAN), spread=SIZE // 2)
    await stage.journal.close(disk)


async def _damaged(stage: Stage, size: int) -> SparseBytes:
    storage = MemoryStorage(empty_image(size))
    async with qedasync.open(stage.path, "r+", storage=storage) as disk:
        for cluster in stage.rng.sample(range(8), 6):
            await disk.pwrite(stage.rng.randbytes(CLUSTER), cluster * CLUSTER)
    damaged = storage.content
    table = int.from_bytes(_entry(damaged, CLUSTER, 0), "little")
    damaged.write(_entry(damaged, CLUSTER, 0), CLUSTER + 8)  # L1: two entries, one table
    for index in stage.rng.sample(range(8), 2):  # L2: two entries, one cluster
        damaged.write(_entry(damaged, table, index), table + 8 * (8 + index))
    damaged.write((damaged.size + 9 * CLUSTER).to_bytes(8, "little"), table + 8 * 20)
    damaged.write(stage.rng.randbytes(3 * CLUSTER - 512), damaged.size)  # leaks, and a partial one
    damaged.write(bytes([Features.NEED_CHECK]), 16)
    return damaged


def _entry(content: SparseBytes, table: int, index: int) -> bytes:
    entry = bytearray(8)
    content.read_into(entry, table + 8 * index)
    return bytes(entry)


async def giving_up(stage: Stage) -> None:
    """Users are cancelled in the middle of their calls."""
    disk = await stage.open(empty_image(SIZE), b"", SIZE)
    users = [asyncio.create_task(stage.busy(disk, users=1, calls=9)) for _ in range(9)]
    while users:
        await stage.some_turns(20)
        user = users.pop(stage.rng.randrange(len(users)))
        user.cancel()
        await asyncio.wait([user])
    await stage.journal.close(disk)


async def failing(stage: Stage) -> None:
    """Writes of metadata and data fail, and are undone or tried again."""
    faults = (
        Fault("error", event=Event.L2_UPDATE, call=3),
        Fault("torn", event=Event.WRITE_AIO, call=9),
        Fault("error-after", event=Event.L2_UPDATE, call=8),
        Fault("error", event=Event.L2_ALLOC_WRITE),
        Fault("torn", event=Event.L1_UPDATE),
        Fault("short", event=Event.WRITE_AIO, call=20),
    )
    disk = await stage.open(empty_image(SIZE), b"", SIZE, *faults)
    await stage.busy(disk, users=5, calls=8)
    await _close_whatever(stage, disk)


async def losing_a_flush(stage: Stage) -> None:
    """A flush fails: what came before is in doubt, and the image takes no more writes."""
    disk = await stage.open(empty_image(SIZE), b"", SIZE, Fault("error", op="flush", call=4))
    await stage.busy(disk, users=5, calls=9)
    await _close_whatever(stage, disk)


async def _close_whatever(stage: Stage, disk: qedasync.Image) -> None:
    try:
        await stage.journal.close(disk)
    except QEDError:
        pass


SCENARIOS: dict[str, Play] = {
    play.__name__: play
    for play in (
        mixed,
        many_tables,
        overlay_on_raw,
        overlay_on_qed,
        growing,
        growing_under_backing,
        quiet_times,
        writing_through,
        repairing,
        unchecked,
        mending,
        giving_up,
        failing,
        losing_a_flush,
    )
}


async def perform(play: Play, stage: Stage) -> Recording:
    """Play a scenario to its end."""
    await play(stage)
    return stage.recording()
