"""``Image.read_view``: what ``pread`` gives, where it lies; and the file while views are kept."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

import qedasync
from qedasync.errors import ImageClosed, ImageLocked, RequestError
from qedasync.image import Image, open_image

CLUSTER = 4096
SIZE = 512 * CLUSTER


async def fill(path: Path, rng: random.Random, *, backing: str | None = None) -> None:
    """An image with runs of data, of zeroes, and holes."""
    await qedasync.create(path, SIZE, cluster_size=CLUSTER, table_size=2, backing_file=backing)
    async with open_image(path, "r+") as disk:
        for _ in range(60):
            pos = rng.randrange(SIZE)
            length = min(rng.choice([100, CLUSTER, 20 * CLUSTER]), SIZE - pos)
            if rng.random() < 0.3:
                await disk.write_zeroes(length, pos)
            else:
                await disk.pwrite(rng.randbytes(length), pos)
        await disk.flush()


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """An image whose cluster 1 holds a text."""
    path = tmp_path / "disk.qed"
    await qedasync.create(path, SIZE)
    async with open_image(path, "r+") as disk:
        await disk.pwrite(b"hello", 65536)
        await disk.flush()
    return path


async def shows_pages(disk: Image) -> bool:
    """Whether views are views here: some file systems have no leases."""
    view = await disk.read_view(5, 65536)
    assert bytes(view) == b"hello"
    return isinstance(view.obj, mmap.mmap)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("layers", [1, 3])
async def test_read_view_random_ranges_are_what_pread_gives(
    tmp_path: Path, layers: int, seed: int
) -> None:
    rng = random.Random(seed)
    name: str | None = None
    for layer in range(layers):
        await fill(tmp_path / f"{layer}.qed", rng, backing=name)
        name = f"{layer}.qed"
    async with (
        open_image(tmp_path / f"{layers - 1}.qed", map=True) as disk,
        open_image(tmp_path / f"{layers - 1}.qed") as other,
    ):
        for _ in range(60):
            pos = rng.randrange(SIZE)
            length = min(rng.choice([1, 512, CLUSTER, 9 * CLUSTER, SIZE]), SIZE - pos)
            view = await disk.read_view(length, pos)
            assert view.readonly
            expected = await other.pread(length, pos)
            assert bytes(view) == expected, (seed, pos, length)
            assert await disk.pread(length, pos) == expected, (seed, pos, length)


async def test_read_view_pages_that_have_left_the_cache_are_read(path: Path) -> None:
    async with open_image(path, map=True) as disk:
        if not await shows_pages(disk):
            pytest.skip("the file system has no leases, or no RWF_NOWAIT")
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    async with open_image(path, map=True) as disk:
        assert disk.try_read_view(5, 65536) is None
        assert await shows_pages(disk)
        assert bytes(disk.try_read_view(5, 65536) or b"") == b"hello"


async def test_read_view_without_a_map_is_a_copy_that_cannot_be_written(path: Path) -> None:
    async with open_image(path, "r+") as disk:
        view = await disk.read_view(5, 65536)
        assert bytes(view) == b"hello"
        assert view.readonly
        assert disk.try_read_view(5, 65536) is None
        await disk.pwrite(b"later", 65536)
        assert bytes(view) == b"hello"


@pytest.mark.parametrize(("length", "offset"), [(1, SIZE), (SIZE + 1, 0), (-1, 0), (1, -1)])
async def test_read_view_outside_the_image_raises(path: Path, length: int, offset: int) -> None:
    async with open_image(path, map=True) as disk:
        with pytest.raises(RequestError):
            await disk.read_view(length, offset)


async def test_read_view_of_nothing_is_empty(path: Path) -> None:
    async with open_image(path, map=True) as disk:
        assert not len(await disk.read_view(0, SIZE))


async def test_read_view_closed_image_raises(path: Path) -> None:
    async with open_image(path, map=True) as disk:
        await shows_pages(disk)
    with pytest.raises(ImageClosed):
        await disk.read_view(5, 65536)
    assert disk.try_read_view(5, 65536) is None


async def test_view_kept_after_close_stays_valid_and_the_file_locked(path: Path) -> None:
    async with open_image(path, map=True) as disk:
        if not await shows_pages(disk):
            pytest.skip("the file system has no leases, or no RWF_NOWAIT")
        view = await disk.read_view(5, 65536)
    assert bytes(view) == b"hello"
    with pytest.raises(ImageLocked):
        await open_image(path, "r+")
    assert bytes(view) == b"hello"
    del view
    async with open_image(path, "r+") as disk:
        await disk.pwrite(b"later", 65536)


async def test_mapped_image_keeps_writers_out_and_copies_once_one_has_asked(path: Path) -> None:
    async with open_image(path, map=True) as disk:
        if not await shows_pages(disk):
            pytest.skip("the file system has no leases, or no RWF_NOWAIT")
        with pytest.raises(ImageLocked, match="lease"):
            await open_image(path, "r+", lock=False)
        while disk.try_read_view(5, 65536) is not None:
            pass
        assert not await shows_pages(disk), "the pause has looked at the lease"
        await (await open_image(path, "r+", lock=False)).close()


@pytest.mark.parametrize(
    "wish", [{"mode": "r+"}, {"lock": False}, {"cache": "none"}], ids=["r+", "no lock", "direct"]
)
def test_open_map_of_what_may_change_is_refused(path: Path, wish: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="map"):
        open_image(path, map=True, **wish)  # type: ignore[arg-type]
