"""Rebase, stream and commit: with and without guests at work the image reads the same."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from qedasync.engine.extents import ExtentKind
from qedasync.image import Image
from qedasync.storage.base import Storage
from qedasync.storage.memory import MemoryStorage
from tests.chain.stack import (
    CASES,
    COMMITS,
    REBASES,
    SECTOR,
    Case,
    Files,
    header_of,
    jittery,
    make,
    open_below,
    open_stack,
    read_all,
    read_back,
    run_job,
)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_rebase = pytest.mark.parametrize("case", REBASES, ids=lambda case: case.name)
each_commit = pytest.mark.parametrize("case", COMMITS, ids=lambda case: case.name)

GUESTS = 4


def quick(files: Files) -> dict[str, Storage]:
    return {name: MemoryStorage(content) for name, content in files.items()}


@each_case
async def test_job_leaves_the_content_and_a_sound_image(case: Case) -> None:
    files, expected = await make(case)
    storages = quick(files)
    async with await open_stack(case, storages) as disk:
        assert await read_all(disk) == expected
        await run_job(case, disk, storages)
        assert await read_all(disk) == expected
    assert await read_back(case, files) == expected


@each_rebase
async def test_rebase_records_the_new_name_and_format(case: Case) -> None:
    files, _ = await make(case)
    storages = quick(files)
    async with await open_stack(case, storages) as disk:
        await run_job(case, disk, storages)
        assert disk.backing_file == ("new" if case.new else None)
    header, name = header_of(files["top"])
    assert name == ("new" if case.new else None)
    assert header.backing_is_raw is (case.new is not None and case.new.raw)
    assert not header.need_check


async def test_rebase_to_the_same_content_allocates_nothing() -> None:
    case = next(case for case in REBASES if case.name == "rebase-to-the-same")
    files, _ = await make(case)
    size = files["top"].size
    storages = quick(files)
    async with await open_stack(case, storages) as disk:
        await run_job(case, disk, storages)
    assert files["top"].size == size


async def test_flatten_leaves_zeroes_unallocated_and_copies_data() -> None:
    case = next(case for case in REBASES if case.name == "flatten")
    files, expected = await make(case)
    storages = quick(files)
    async with await open_stack(case, storages) as disk:
        await run_job(case, disk, storages)
        for run in await disk.block_status(0, disk.size):
            part = expected[run.start : run.end]
            assert run.zero or run.kind is ExtentKind.DATA
            assert not run.zero or not any(part)


async def test_rebase_from_nothing_hides_the_new_file_with_zero_clusters() -> None:
    case = next(case for case in REBASES if case.name == "rebase-from-nothing")
    files, expected = await make(case)
    size = files["top"].size
    storages = quick(files)
    async with await open_stack(case, storages) as disk:
        await run_job(case, disk, storages)
        assert await read_all(disk) == expected
    assert files["top"].size == size, "data was written where zeroes are enough"


@each_commit
async def test_commit_puts_everything_into_the_backing_file(case: Case) -> None:
    assert case.base
    files, expected = await make(case)
    size = files["top"].size
    storages = quick(files)
    async with await open_stack(case, storages) as disk:
        await run_job(case, disk, storages)
        kinds = {run.kind for run in await disk.block_status(0, disk.size)}
    async with await open_below(case.base, MemoryStorage(files["base"]), "r") as base:
        assert base.size == max(case.base.size, case.size)
        below = await read_all(base)
    assert below[: case.size] == expected
    assert below[case.size :] == case.base.content()[case.size :]
    if case.job == "keep":
        assert ExtentKind.DATA in kinds
        assert files["top"].size == size
    else:
        assert not kinds & {ExtentKind.DATA, ExtentKind.ZERO}
        assert files["top"].size == 3 * 4096, "the file was not cut behind L1"


@each_case
async def test_job_reports_progress_that_rises_to_the_end(case: Case) -> None:
    files, _ = await make(case)
    storages = quick(files)
    seen: list[tuple[int, int]] = []
    async with await open_stack(case, storages) as disk:
        await run_job(case, disk, storages, progress=lambda *at: seen.append(at))
    assert seen[-1] == (case.size, case.size)
    assert seen == sorted(seen)


# ------------------------------------------------------------------ guests at work


class Guests:
    """Several writers; each has sectors of its own, so that all bytes are known at any time."""

    def __init__(self, disk: Image, expected: bytes, rng: Random) -> None:
        self.disk = disk
        self.expected = bytearray(expected)
        self.rng = rng
        self.calls = 0
        self._stop = False

    async def run_while(self, job: asyncio.Task[None]) -> None:
        """Write and read until the job has ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(GUESTS):
                group.create_task(self._guest(number, job))

    async def _guest(self, number: int, job: asyncio.Task[None]) -> None:
        own = range(number, self.disk.size // SECTOR, GUESTS)
        while not job.done():
            self.calls += 1
            pos = self.rng.choice(own) * SECTOR
            match self.rng.randrange(6):
                case 0 | 1 | 2:
                    data = self.rng.randbytes(SECTOR)
                    await self.disk.pwrite(data, pos)
                case 3:
                    data = bytes(SECTOR)
                    await self.disk.write_zeroes(SECTOR, pos)
                case 4:
                    await self.disk.flush()
                    continue
                case _:
                    data = bytes(self.expected[pos : pos + SECTOR])
            self.expected[pos : pos + SECTOR] = data
            assert await self.disk.pread(SECTOR, pos) == data, f"sector {pos // SECTOR}"


@each_case
@pytest.mark.parametrize("seed", [1, 2])
async def test_job_with_guests_at_work_loses_nothing(case: Case, seed: int) -> None:
    rng = Random(seed)
    files, expected = await make(case)
    storages: dict[str, Storage] = {name: jittery(files[name], rng) for name in files}
    async with await open_stack(case, storages) as disk:
        job = asyncio.create_task(run_job(case, disk, storages, tasks=1 + seed))
        guests = Guests(disk, expected, rng)
        await guests.run_while(job)
        await job
        assert guests.calls >= GUESTS
        assert await read_all(disk) == guests.expected
    assert await read_back(case, files) == guests.expected


@each_case
async def test_job_while_the_image_grows_covers_the_new_part(case: Case) -> None:
    rng = Random(1)
    files, expected = await make(case)
    storages: dict[str, Storage] = {name: jittery(files[name], rng) for name in files}
    async with await open_stack(case, storages) as disk:
        job = asyncio.create_task(run_job(case, disk, storages, tasks=2))
        sizes = [case.size + step for step in (512, 4096, 9 * 4096 + 512)]
        for size in sizes:
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            await disk.truncate(size)
            await disk.pwrite(b"n" * 512, size - 512)
            expected = expected.ljust(size - 512, b"\0") + b"n" * 512
        await job
        assert await read_all(disk) == expected
    assert await read_back(case, files) == expected
