"""Every storage call of every job goes wrong in every way; the image reads the same all the while.

A quarter of the points on each loop, all of them in the slow run. A job that failed can be done
again, by somebody who opens the files anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EIO

import pytest

from qedasync.errors import ImageFailed, QEDError, StorageError
from qedasync.image import Image
from qedasync.storage.faults import Call, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.chain.stack import (
    CASES,
    CLUSTER,
    SECTOR,
    Case,
    Files,
    header_of,
    make,
    open_stack,
    read_all,
    read_back,
    run_job,
)
from tests.faults.model import GRAIN
from tests.faults.points import HANG, WAYS, points_of

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

Storages = dict[str, FaultStorage]


@dataclass(frozen=True)
class Point:
    """One call that goes wrong; ``nth`` among those that this way can hit."""

    way: str
    name: str
    nth: int
    call: Call

    def __str__(self) -> str:
        return f"{self.way} at {self.nth} of {self.name}, {self.call}"


@contextmanager
def at_full_speed() -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)
    try:
        yield
    finally:
        loop.set_debug(True)


def storages_of(files: Files) -> Storages:
    return {
        name: FaultStorage(MemoryStorage(content.copy(), inline=False))
        for name, content in files.items()
    }


def files_in(storages: Storages) -> Files:
    inner = {name: each.inner for name, each in storages.items()}
    return {
        n: storage.content for n, storage in inner.items() if isinstance(storage, MemoryStorage)
    }


class Guest:
    """Writes a few sectors while the job goes on, and knows what may be in them."""

    def __init__(self, case: Case, expected: bytes) -> None:
        self.case = case
        self.expected = bytearray(expected)
        self.unsure: dict[int, bytes] = {}
        self.errors: list[QEDError] = []

    async def work(self, disk: Image) -> None:
        for number, cluster in enumerate((0, 3, 6, 15)):
            pos, data = cluster * CLUSTER + 2 * SECTOR, bytes([0xE0 + number]) * SECTOR
            self.unsure[pos] = data
            try:
                await disk.pwrite(data, pos)
            except QEDError as error:
                self.errors.append(error)
                continue
            self.expected[pos : pos + SECTOR] = self.unsure.pop(pos)

    def compare(self, got: bytes) -> None:
        """Old or new where a write has failed; from now on what is there."""
        for start, data in self.unsure.items():
            for pos in (start, start + GRAIN):  # a short write ends in the middle of a sector
                if got[pos : pos + GRAIN] == data[:GRAIN]:
                    self.expected[pos : pos + GRAIN] = data[:GRAIN]
        wrong = [
            pos
            for pos in range(0, len(got), GRAIN)
            if got[pos : pos + GRAIN] != self.expected[pos : pos + GRAIN]
        ]
        assert not wrong, f"differs at {wrong}"
        assert len(got) == len(self.expected)


async def points(case: Case, files: Files, expected: bytes) -> list[Point]:
    """Run without a fault and note the calls."""
    storages = storages_of(files)
    async with await open_stack(case, storages) as disk:
        before = {name: len(storage.calls) for name, storage in storages.items()}
        await asyncio.gather(run_job(case, disk, storages), Guest(case, expected).work(disk))
        calls = {name: s.calls[before[name] :] for name, s in storages.items()}
    return [
        Point(way, name, point.nth, point.call)
        for name in calls
        for way, fault in WAYS.items()
        for point in points_of(way, fault, 0, calls[name])
    ]


async def run_point(case: Case, files: Files, expected: bytes, point: Point) -> None:
    storages = storages_of(files)
    guest = Guest(case, expected)
    async with asyncio.timeout(HANG):
        disk = await open_stack(case, storages)
        error = await disturbed(case, disk, storages, guest, point)
        guest.compare(await read_all(disk))
        failed = await is_failed(disk)
        if failed:
            assert may_fail_the_image(point), f"the image has failed, by {error!r}"
        try:
            await disk.close()
        except QEDError:
            assert point.way != "cancel"
        left = files_in(storages)
        guest.compare(await read_back(case, left))
        if error is not None or point.way == "cancel":
            await do_it_again(case, left, guest)


async def disturbed(
    case: Case, disk: Image, storages: Storages, guest: Guest, point: Point
) -> BaseException | None:
    """The job with the fault; how it ended."""
    job = asyncio.create_task(run_job(case, disk, storages))
    fault = replace(WAYS[point.way], call=point.nth)
    if point.way == "cancel":
        fault = replace(fault, callback=job.cancel)
    storage = storages[point.name]
    storage.add(fault)
    await asyncio.gather(asyncio.wait([job]), guest.work(disk))
    assert storage.fired, "the call did not happen"
    for each in storages.values():
        each.clear()
    if job.cancelled():
        assert point.way == "cancel"
        return None
    error = job.exception()
    if error is None:
        return None
    assert isinstance(error, QEDError), repr(error)
    assert point.way not in ("delay", "cancel"), repr(error)
    wanted = WAYS[point.way].errno
    assert getattr(error, "errno", None) == wanted, repr(error)
    return error


async def is_failed(disk: Image) -> bool:
    """Whether the image takes no writes; it says so then."""
    pos = 13 * CLUSTER
    try:
        await disk.pwrite(await disk.pread(SECTOR, pos), pos)
        await disk.flush()
    except ImageFailed:
        return True
    return False


def may_fail_the_image(point: Point) -> bool:
    return point.way == "broken" or point.call.op == "flush"


async def do_it_again(case: Case, files: Files, guest: Guest) -> None:
    """The job on what is left, without a fault."""
    if case.job == "rebase" and header_of(files["top"])[1] != ("base" if case.base else None):
        return  # it was done
    storages = storages_of(files)
    async with await open_stack(case, storages) as disk:
        await run_job(case, disk, storages)
        guest.compare(await read_all(disk))
    guest.compare(await read_back(case, files_in(storages)))


def first_point() -> int:
    """Another one on each loop."""
    return 0 if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop) else 1


@each_case
async def test_job_with_any_call_gone_wrong_keeps_the_content(case: Case) -> None:
    await run_points(case, first_point(), 4)


@pytest.mark.slow
@each_case
async def test_job_with_every_call_gone_wrong_on_this_loop_keeps_the_content(case: Case) -> None:
    await run_points(case, 0, 1)


async def run_points(case: Case, first: int, step: int) -> None:
    files, expected = await make(case)
    with at_full_speed():
        found = await points(case, files, expected)
        assert len(found) > 50
        for point in found[first::step]:
            try:
                await run_point(case, files, expected, point)
            except BaseException as error:
                error.add_note(f"{case.name}: {point}")
                raise


@each_case
async def test_job_cancelled_after_any_turn_keeps_the_content(case: Case) -> None:
    files, expected = await make(case)
    cancelled = 0
    with at_full_speed():
        for turns in range(first_point(), 2000, 2):
            storages = storages_of(files)
            guest = Guest(case, expected)
            disk = await open_stack(case, storages)
            job = asyncio.create_task(run_job(case, disk, storages))
            working = asyncio.create_task(guest.work(disk))
            for _ in range(turns):
                await asyncio.sleep(0)
            job.cancel()
            await asyncio.wait([job, working])
            guest.compare(await read_all(disk))
            assert not await is_failed(disk)
            await disk.close()
            left = files_in(storages)
            guest.compare(await read_back(case, left))
            if not job.cancelled():
                await job
                break
            cancelled += 1
            if turns % 8 < 2:
                await do_it_again(case, left, guest)
    assert cancelled > 5


async def test_write_that_waits_at_the_gate_while_the_image_fails_is_refused() -> None:
    files, _ = await make(CASES[0])
    storages = storages_of(files)
    disk = await open_stack(CASES[0], storages)
    async with disk._engine.exclusive():
        write = asyncio.create_task(disk.pwrite(b"x" * SECTOR, 2 * CLUSTER))
        await asyncio.sleep(0)
        disk._engine.fail(StorageError(EIO))
    await asyncio.wait([write])
    assert isinstance(write.exception(), ImageFailed)
    with pytest.raises(ImageFailed):
        await disk.close()
