"""What is done at once or not at all, for callers that have no coroutine to wait in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

import qedasync
from qedasync.engine.budget import INLINE_REQUESTS

CLUSTER = 4096
SIZE = 1 << 20
TEXT = Random(3).randbytes(40 * CLUSTER)


@asynccontextmanager
async def image(storage: qedasync.Storage | None = None) -> AsyncIterator[qedasync.Image]:
    """The first 40 clusters hold ``TEXT``; the second ten of them come last in the file."""
    storage = storage or qedasync.MemoryStorage()
    await qedasync.create("disk", SIZE, cluster_size=CLUSTER, storage=storage)
    async with qedasync.open("disk", "r+", storage=storage) as disk:
        for start, end in ((0, 10), (20, 40), (10, 20)):
            await disk.pwrite(TEXT[start * CLUSTER : end * CLUSTER], start * CLUSTER)
        await asyncio.sleep(0)
        yield disk


async def test_try_readinto_fills_a_buffer_from_many_runs() -> None:
    async with image() as disk:
        for pos, length in ((0, len(TEXT)), (1, 5), (9 * CLUSTER + 7, 11 * CLUSTER), (5, 0)):
            buffer = bytearray(length)
            assert disk.try_readinto(buffer, pos), (pos, length)
            assert buffer == TEXT[pos : pos + length]


async def test_try_readinto_refuses_holes_and_what_is_out_of_range() -> None:
    async with image() as disk:
        buffer = bytearray(2 * CLUSTER)
        for pos in (39 * CLUSTER, SIZE - 2 * CLUSTER, SIZE - 1, -1, -len(buffer), 1 << 64):
            assert not disk.try_readinto(buffer, pos), pos
    assert not disk.try_readinto(buffer, 0), "closed"


async def test_try_readinto_refuses_when_the_loop_ought_to_have_a_turn() -> None:
    async with image() as disk:
        buffer = bytearray(len(TEXT))
        done = 0
        while disk.try_readinto(buffer, 0):
            done += 1
        assert 0 < done <= INLINE_REQUESTS
        disk.renew_soon()
        assert not disk.try_readinto(buffer, 0)
        await asyncio.sleep(0)
        assert disk.try_readinto(buffer, 0)


async def test_try_locate_tells_where_one_run_is_in_the_file(tmp_path: Path) -> None:
    storage = await qedasync.open_storage(tmp_path / "disk", writable=True, create=True)
    async with image(storage) as disk:
        for pos, length in ((0, 10 * CLUSTER), (10 * CLUSTER + 5, 7), (20 * CLUSTER, CLUSTER)):
            place = disk.try_locate(length, pos)
            if place is None:
                pytest.skip("this host does not say what its page cache holds")
            assert os.pread(place[0], length, place[1]) == TEXT[pos : pos + length]
        for length, pos in ((11 * CLUSTER, 0), (1, 40 * CLUSTER), (1, SIZE), (1, -1), (0, 0)):
            assert disk.try_locate(length, pos) is None, pos
    assert disk.try_locate(1, 0) is None, "closed"


async def test_try_locate_of_a_storage_that_is_no_file_is_none() -> None:
    async with image() as disk:
        assert disk.try_readinto(bytearray(CLUSTER), 0)
        assert disk.try_locate(CLUSTER, 0) is None
