"""Image.populate: a content for clusters that nobody has written, and for no others."""

from __future__ import annotations

import asyncio

import pytest

import qedasync

CLUSTER = 4096
SIZE = 4 << 20  # two slices of 512 clusters


async def image(size: int = SIZE, cluster_size: int = CLUSTER) -> qedasync.Image:
    storage = qedasync.MemoryStorage()
    await qedasync.create("", size, cluster_size=cluster_size, storage=storage)
    return await qedasync.open("", "r+", storage=storage)


async def kinds(disk: qedasync.Image) -> list[tuple[int, str]]:
    """(length in clusters, kind) of the runs."""
    return [(run.length // CLUSTER, str(run.kind)) async for run in disk.extents()]


async def test_populate_gives_unallocated_clusters_a_content() -> None:
    async with await image() as disk:
        await disk.populate(b"x" * 2 * CLUSTER, CLUSTER)
        assert await disk.pread(4 * CLUSTER, 0) == b"".join(
            [bytes(CLUSTER), b"x" * 2 * CLUSTER, bytes(CLUSTER)]
        )
        assert await kinds(disk) == [(1, "unallocated"), (2, "data"), (1021, "unallocated")]


async def test_populate_leaves_what_is_allocated() -> None:
    async with await image() as disk:
        await disk.pwrite(b"guest", CLUSTER)
        await disk.write_zeroes(CLUSTER, 2 * CLUSTER)
        await disk.populate(b"x" * 4 * CLUSTER, 0)
        found = [await disk.pread(6, at * CLUSTER) for at in range(4)]
        assert found == [b"xxxxxx", b"guest\0", bytes(6), b"xxxxxx"]


@pytest.mark.parametrize("make", [bytes, bytearray, lambda n: memoryview(bytes(n))])
async def test_populate_with_zeroes_marks_them(make: type[bytes]) -> None:
    async with await image() as disk:
        await disk.populate(make(3 * CLUSTER), 0)
        assert await kinds(disk) == [(3, "zero"), (1021, "unallocated")]


async def test_populate_with_some_zeroes_writes_them_all() -> None:
    async with await image() as disk:
        await disk.populate(bytes(2 * CLUSTER) + b"x" * CLUSTER, 0)
        assert await kinds(disk) == [(3, "data"), (1021, "unallocated")]


async def test_populate_over_the_end_of_a_slice_does_all() -> None:
    content = b"".join(at.to_bytes(2, "big") * (CLUSTER // 2) for at in range(1024))
    async with await image() as disk:
        await disk.populate(content, 0)
        assert await disk.pread(SIZE, 0) == content
        assert (await disk.check()).ok


async def test_populate_to_the_end_of_an_image_that_ends_in_a_cluster() -> None:
    async with await image(CLUSTER + 512) as disk:
        await disk.populate(b"x" * 512, CLUSTER)
        assert await disk.pread(512, CLUSTER) == b"x" * 512


@pytest.mark.parametrize(("offset", "length"), [(1, CLUSTER), (0, 5), (0, SIZE + 1), (-1, CLUSTER)])
async def test_populate_of_parts_of_clusters_is_refused(offset: int, length: int) -> None:
    async with await image() as disk:
        with pytest.raises(qedasync.RequestError):
            await disk.populate(bytes(length), offset)


async def test_populate_beside_a_write_keeps_the_write() -> None:
    async with await image() as disk:
        async with asyncio.TaskGroup() as group:
            for at in range(8):
                group.create_task(disk.pwrite(b"guest", at * CLUSTER))
                group.create_task(disk.populate(b"x" * CLUSTER, at * CLUSTER))
        found = {bytes(await disk.pread(5, at * CLUSTER)) for at in range(8)}
        assert found == {b"guest"}
