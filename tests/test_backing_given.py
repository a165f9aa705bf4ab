"""Backing files that a policy's function answers with a disk for; files of other formats."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync import BackingError, BackingRefused, BackingRequest, Disk

SIZE = 1 << 20


async def disk(fill: bytes = b"d", size: int = SIZE) -> Disk:
    """A raw disk in memory."""
    return await qedasync.open_raw("given", storage=qedasync.MemoryStorage(fill * size))


async def overlay(path: Path, name: str, fmt: Any = None, size: int = SIZE) -> Path:
    await qedasync.create(path, size, backing_file=name, backing_format=fmt, backing_unchecked=True)
    return path


@pytest.fixture
async def top(tmp_path: Path) -> Path:
    """An overlay on base.qcow2, which begins as such an image does."""
    (tmp_path / "base.qcow2").write_bytes(b"QFI\xfb\0\0\0\3".ljust(SIZE, b"\0"))
    return await overlay(tmp_path / "top.qed", "base.qcow2")


# ------------------------------------------------------------------- other formats


@pytest.mark.parametrize("policy", ["auto", True, "any", lambda request: True])
async def test_image_of_another_format_is_not_taken_for_raw(top: Path, policy: Any) -> None:
    with pytest.raises(BackingError, match="qcow2 image, not QED or raw") as caught:
        await qedasync.open(top, backing=policy)
    assert (caught.value.errno, caught.value.name) == (errno.ENOTSUP, "base.qcow2")
    assert isinstance(caught.value.__cause__, qedasync.FormatError)
    assert caught.value.__cause__.field == "format"


async def test_image_of_another_format_that_is_recorded_as_raw_is_raw(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"QFI\xfb\0\0\0\3".ljust(SIZE, b"\0"))
    path = await overlay(tmp_path / "top.qed", "base", "raw")
    async with qedasync.open(path) as image:
        assert await image.pread(4, 0) == b"QFI\xfb"


async def test_new_overlay_on_another_format_is_refused_and_not_made(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"conectix".ljust(SIZE, b"\0"))
    with pytest.raises(BackingError, match="vpc image"):
        await qedasync.create(tmp_path / "top.qed", backing_file="base")
    assert not (tmp_path / "top.qed").exists()


async def test_function_is_asked_again_when_the_format_is_known(top: Path) -> None:
    asked: list[BackingRequest] = []

    async def policy(request: BackingRequest) -> bool | Disk:
        asked.append(request)
        return await disk() if request.format == "qcow2" else True

    async with qedasync.open(top, backing=policy) as image:
        assert await image.pread(2, 100) == b"dd"
    path = str(top.with_name("base.qcow2"))
    assert asked == [
        BackingRequest("base.qcow2", path, str(top), 1, None),
        BackingRequest("base.qcow2", path, str(top), 1, "qcow2"),
    ]


async def test_function_that_refuses_the_format_is_obeyed(top: Path) -> None:
    with pytest.raises(BackingRefused, match="refused by the function"):
        await qedasync.open(top, backing=lambda request: request.format is None)


# ---------------------------------------------------------------------- given disks


@pytest.mark.parametrize("make", [lambda given: given, lambda given: returned(given)])
async def test_disk_takes_the_files_place_and_is_closed_with_the_image(
    tmp_path: Path, make: Callable[[Disk], Any]
) -> None:
    given = await disk()
    (tmp_path / "base.raw").write_bytes(bytes(SIZE))
    path = await overlay(tmp_path / "top.qed", "base.raw")
    async with qedasync.open(path, "r+", backing=lambda request: make(given)) as image:
        assert await image.pread(1, 0) == b"d"
        await image.pwrite(b"x", 1)
        assert await image.pread(3, 0) == b"dxd"
        assert not given.closed
    assert given.closed


async def returned(given: Disk) -> Disk:
    return given


async def test_disk_below_another_image_is_read_through_both(tmp_path: Path) -> None:
    await overlay(tmp_path / "middle.qed", "nbd://localhost/x")
    path = await overlay(tmp_path / "top.qed", "middle.qed", size=2 * SIZE)
    given = await disk()

    def policy(request: BackingRequest) -> bool | Disk:
        return True if request.path else given

    async with qedasync.open(path, backing=policy) as image:
        assert await image.pread(2, SIZE - 1) == b"d\0"
        runs = await image.block_status(0, 2 * SIZE)
        assert [(run.depth, run.zero) for run in runs] == [(2, False), (0, True)]
    assert given.closed


async def test_url_is_asked_about_with_an_empty_path(tmp_path: Path) -> None:
    path = await overlay(tmp_path / "top.qed", "nbd://localhost/x", "raw")
    asked: list[BackingRequest] = []

    async def policy(request: BackingRequest) -> Disk:
        asked.append(request)
        return await disk()

    async with qedasync.open(path, backing=policy) as image:
        assert await image.pread(1, 0) == b"d"
    assert asked == [BackingRequest("nbd://localhost/x", "", str(path), 1, "raw")]
    assert not asked[0].is_beside


async def test_coroutine_function_that_says_no_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(SIZE))
    path = await overlay(tmp_path / "top.qed", "base.raw")

    async def policy(request: BackingRequest) -> bool:
        return False

    with pytest.raises(BackingRefused):
        await qedasync.open(path, backing=policy)


@pytest.mark.parametrize(
    "error", [qedasync.StorageError(errno.ECONNREFUSED), qedasync.RequestError("no URI")]
)
async def test_disk_that_cannot_be_opened_is_a_backing_error(
    tmp_path: Path, error: qedasync.QEDError
) -> None:
    path = await overlay(tmp_path / "top.qed", "nbd://localhost/x")

    def policy(request: BackingRequest) -> bool:
        raise error

    with pytest.raises(BackingError) as caught:
        await qedasync.open(path, backing=policy)
    assert caught.value.__cause__ is error
    number = errno.EINVAL if isinstance(error, qedasync.RequestError) else errno.ECONNREFUSED
    assert (caught.value.name, caught.value.errno) == ("nbd://localhost/x", number)


async def test_disk_is_closed_when_the_image_cannot_be_opened_after_all(tmp_path: Path) -> None:
    await overlay(tmp_path / "middle.qed", "nbd://localhost/x")
    path = await overlay(tmp_path / "top.qed", "middle.qed")
    given = await disk()

    def policy(request: BackingRequest) -> bool | Disk:
        if request.path:
            return True
        (tmp_path / "middle.qed").write_bytes(b"")  # as somebody else might just then
        return given

    with pytest.raises(BackingError):
        await qedasync.open(path, backing=policy)
    assert given.closed


async def test_new_backing_file_named_by_the_caller_needs_the_function_for_a_disk_only(
    tmp_path: Path,
) -> None:
    path = await overlay(tmp_path / "top.qed", "none")
    async with qedasync.open(path, "r+", backing=False) as image:
        await image.change_backing_file(None)
    (tmp_path / "base").write_bytes(b"vhdxfile".ljust(SIZE, b"\0"))
    asked: list[str | None] = []

    async def policy(request: BackingRequest) -> Disk:
        asked.append(request.format)
        return await disk(bytes(1))

    async with qedasync.open(path, "r+") as image:
        await image.rebase("base", backing=policy)
        assert await image.pread(1, 0) == b"\0"
    assert asked == ["vhdx"]
