"""What users call: every method's contract, its errors, and opening and closing."""

from __future__ import annotations

import asyncio
import errno
import os
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync.engine.extents import ExtentKind
from qedasync.errors import (
    AccessDenied,
    HeaderError,
    ImageClosed,
    ImageFailed,
    ImageNotFound,
    QEDError,
    ReadOnly,
    RequestError,
    StorageError,
    UnsupportedFeature,
)
from qedasync.events import Event
from qedasync.format.header import Features
from qedasync.image import Image, open_image
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import RecorderStorage
from tests.helpers.model import blank

CLUSTER = 4096
SIZE = 64 * CLUSTER + 512

Call = Callable[[Image], Coroutine[Any, Any, object]]


def empty(size: int = SIZE) -> MemoryStorage:
    return MemoryStorage(blank(size, CLUSTER, 2))


@pytest.fixture
async def disk() -> AsyncIterator[Image]:
    """A writable image whose clusters 1 and 2 hold a text."""
    async with open_image("disk.qed", "r+", storage=empty()) as image:
        await image.pwrite(TEXT, CLUSTER)
        yield image


TEXT = (b"The quick brown fox. " * 400)[: 2 * CLUSTER]


# ----------------------------------------------------------------------- facts


async def test_facts_are_those_of_the_header(disk: Image) -> None:
    assert disk.path == "disk.qed"
    assert disk.size == SIZE
    assert disk.cluster_size == CLUSTER
    assert disk.table_size == 2
    assert disk.backing_file is None
    assert disk.backing_format is None
    assert disk.features == Features.NEED_CHECK
    assert not disk.readonly
    assert not disk.closed


@pytest.mark.parametrize(("raw", "expected"), [(True, "raw"), (False, None)])
async def test_facts_of_an_overlay_name_its_backing_file(
    tmp_path: Path, raw: bool, expected: str | None
) -> None:
    (tmp_path / "base").write_bytes(b"B" * 1000)
    path = tmp_path / "disk.qed"
    path.write_bytes(blank(SIZE, CLUSTER, 2, "base", raw=raw))
    async with open_image(path) as disk:
        assert disk.path == str(path)
        assert (disk.backing_file, disk.backing_format) == ("base", expected)
        assert disk.features & Features.BACKING_FILE
        assert await disk.pread(3, 998) == b"BB\0"


async def test_repr_says_what_it_is_and_in_which_state() -> None:
    for mode, state in (("r", "read-only"), ("r+", "writable")):
        async with open_image("a.qed", mode, storage=empty()) as disk:  # type: ignore[arg-type]
            assert repr(disk) == f"<qedasync.Image 'a.qed' {SIZE} bytes, {state}>"
        assert repr(disk) == f"<qedasync.Image 'a.qed' {SIZE} bytes, closed>"
        assert disk.closed


async def test_stats_are_a_copy_and_count(disk: Image) -> None:
    await disk.pread(1, CLUSTER)
    await disk.pread(1, CLUSTER)
    stats = disk.stats
    assert stats.inline_reads + stats.reads == 2
    assert stats.writes == 1
    assert stats.write_bytes == len(TEXT)
    stats.writes = 99
    assert disk.stats.writes == 1


# ----------------------------------------------------------------------- reads


@pytest.mark.parametrize(
    ("length", "offset"),
    [(21, CLUSTER), (CLUSTER, CLUSTER), (2 * CLUSTER, CLUSTER), (1, SIZE - 1), (100, CLUSTER - 50)],
)
async def test_reads_of_every_kind_give_the_same(disk: Image, length: int, offset: int) -> None:
    whole = (bytes(CLUSTER) + TEXT).ljust(SIZE, b"\0")
    expected = whole[offset : offset + length]
    for _ in range(2):  # the second may be inline
        assert await disk.pread(length, offset) == expected
        buffer = bytearray(b"?" * length)
        assert await disk.readinto(buffer, offset) == length
        assert buffer == expected
        first, second = bytearray(b"?" * (length // 3)), bytearray(b"?" * (length - length // 3))
        assert await disk.preadv([first, bytearray(), second], offset) == length
        assert first + second == expected


async def test_pread_answers_bytes_of_ones_own(disk: Image) -> None:
    data = await disk.pread(4, CLUSTER)
    data[:] = b"mine"
    assert await disk.pread(4, CLUSTER) == TEXT[:4]


async def test_readinto_memoryviews_fill_just_them(disk: Image) -> None:
    buffer = bytearray(b"?" * 12)
    assert await disk.readinto(memoryview(buffer)[4:8], CLUSTER) == 4
    assert buffer == b"????" + TEXT[:4] + b"????"


async def test_readinto_arrays_and_cast_views_count_in_bytes(disk: Image) -> None:
    numbers = array("I", [0] * 4)
    assert await disk.readinto(numbers, CLUSTER) == 16  # type: ignore[arg-type]
    assert numbers.tobytes() == TEXT[:16]
    square = memoryview(bytearray(16)).cast("B", (4, 4))
    assert await disk.readinto(square, CLUSTER) == 16
    assert square.tobytes() == TEXT[:16]


async def test_empty_buffers_of_other_types_are_nothing(disk: Image) -> None:
    for nothing in (array("I"), memoryview(b"").cast("I"), memoryview(bytearray()).cast("H")):
        assert await disk.pwrite(nothing, 0) == 0  # type: ignore[arg-type]
        assert await disk.pwritev([b"ab", nothing], 0) == 2  # type: ignore[list-item]
    assert await disk.readinto(array("I"), 0) == 0  # type: ignore[arg-type]
    assert await disk.preadv([memoryview(bytearray()).cast("I"), bytearray(2)], 0) == 2


@pytest.mark.parametrize(
    "buffer",
    [b"read-only", memoryview(b"read-only"), memoryview(bytearray(16))[::2]],
    ids=["bytes", "view of bytes", "with gaps"],
)
async def test_readinto_buffer_that_cannot_be_filled_raises(disk: Image, buffer: Any) -> None:
    with pytest.raises(RequestError, match="writable and contiguous"):
        await disk.readinto(buffer, 0)
    with pytest.raises(RequestError):
        await disk.preadv([bytearray(1), buffer], 0)


async def test_preadv_takes_any_iterable(disk: Image) -> None:
    buffers = [bytearray(2), bytearray(3)]
    assert await disk.preadv((buffer for buffer in buffers), CLUSTER) == 5
    assert b"".join(buffers) == TEXT[:5]
    assert await disk.preadv([], 7) == 0


# ---------------------------------------------------------------------- writes


@pytest.mark.parametrize(
    "data",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"1-2-3-4-5-6-7-8-")[::2],
        memoryview(b"12345678").cast("I"),
        memoryview(b"12345678").cast("B", (2, 4)),
        array("H", [0x3231, 0x3433, 0x3635, 0x3837]),
    ],
    ids=["bytes", "bytearray", "view", "gaps", "cast", "square", "array"],
)
async def test_writes_take_whatever_has_bytes(disk: Image, data: Any) -> None:
    assert await disk.pwrite(data, 10) == 8
    assert await disk.pread(10, 9) == b"\x0012345678\0"
    assert await disk.pwritev([b"<", data, b">"], 5 * CLUSTER - 4) == 10
    assert await disk.pread(10, 5 * CLUSTER - 4) == b"<12345678>"


async def test_writes_other_than_bytes_raise_type_error(disk: Image) -> None:
    for data in ("text", 5, None):
        with pytest.raises(TypeError):
            await disk.pwrite(data, 0)  # type: ignore[arg-type]


async def test_pwritev_takes_any_iterable_and_empty_buffers(disk: Image) -> None:
    assert await disk.pwritev((part for part in (b"ab", b"", b"c")), 0) == 3
    assert await disk.pread(4, 0) == b"abc\0"
    assert await disk.pwritev([], 0) == 0


async def test_pwritev_very_many_buffers_are_all_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(blank(SIZE, CLUSTER, 2))
    async with open_image(path, "r+") as disk:
        parts = [bytes([number % 251]) for number in range(5000)]
        for _ in range(2):  # into new clusters, then in place
            assert await disk.pwritev(parts, 7) == 5000
            assert await disk.pread(5000, 7) == b"".join(parts)
        buffers = [bytearray(1) for _ in range(5000)]
        assert await disk.preadv(buffers, 7) == 5000
        assert buffers == parts


async def test_write_zeroes_and_discard_read_as_zeroes(disk: Image) -> None:
    await disk.write_zeroes(10, CLUSTER + 5)
    assert await disk.pread(20, CLUSTER) == TEXT[:5] + bytes(10) + TEXT[15:20]
    await disk.discard(CLUSTER, 2 * CLUSTER)
    assert await disk.pread(CLUSTER, 2 * CLUSTER) in (bytes(CLUSTER), TEXT[CLUSTER:])


async def test_write_last_byte_and_whole_image(disk: Image) -> None:
    assert await disk.pwrite(b"z", SIZE - 1) == 1
    assert await disk.pread(2, SIZE - 2) == b"\0z"
    data = bytes(range(256)) * (SIZE // 256)
    assert await disk.pwrite(data, 0) == SIZE
    assert await disk.pread(SIZE, 0) == data


# ----------------------------------------------------------- lengths and bounds

READS: dict[str, Callable[[Image, int, int], Coroutine[Any, Any, object]]] = {
    "pread": lambda disk, length, offset: disk.pread(length, offset),
    "readinto": lambda disk, length, offset: disk.readinto(bytearray(length), offset),
    "preadv": lambda disk, length, offset: disk.preadv([bytearray(length)], offset),
    "block_status": lambda disk, length, offset: disk.block_status(offset, length),
}
WRITES: dict[str, Callable[[Image, int, int], Coroutine[Any, Any, object]]] = {
    "pwrite": lambda disk, length, offset: disk.pwrite(b"x" * length, offset),
    "pwritev": lambda disk, length, offset: disk.pwritev([b"x" * length], offset),
    "write_zeroes": lambda disk, length, offset: disk.write_zeroes(length, offset),
    "discard": lambda disk, length, offset: disk.discard(length, offset),
}
BOTH = READS | WRITES


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("offset", [0, CLUSTER + 5, SIZE])
async def test_length_zero_does_nothing(name: str, offset: int) -> None:
    storage = RecorderStorage(empty())
    async with open_image("disk.qed", "r+", storage=storage) as disk:
        assert not await BOTH[name](disk, 0, offset)
        assert storage.log == []


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("length", "offset"),
    [(1, SIZE), (2, SIZE - 1), (SIZE + 1, 0), (0, SIZE + 1), (1, -1), (0, -1), (5, 1 << 64)],
)
async def test_range_outside_the_image_raises_and_writes_nothing(
    name: str, length: int, offset: int
) -> None:
    storage = RecorderStorage(empty())
    async with open_image("disk.qed", "r+", storage=storage) as disk:
        with pytest.raises(RequestError) as caught:
            await BOTH[name](disk, length, offset)
        error = caught.value
        assert (error.offset, error.length, error.size) == (offset, length, SIZE)
        assert error.errno == errno.EINVAL
        assert isinstance(error, ValueError)
        assert storage.log == []


@pytest.mark.parametrize("name", ["pread", "block_status", "write_zeroes", "discard"])
async def test_negative_length_raises(disk: Image, name: str) -> None:
    with pytest.raises(RequestError):
        await BOTH[name](disk, -1, 10)


# -------------------------------------------------------------------- truncate


async def test_truncate_larger_reads_zeroes_and_is_there_after_reopen() -> None:
    memory = empty(512)
    async with open_image("disk.qed", "r+", storage=memory) as disk:
        await disk.pwrite(b"x" * 512, 0)
        await disk.truncate(3 * CLUSTER + 512)
        assert disk.size == 3 * CLUSTER + 512
        assert await disk.pread(3 * CLUSTER, 512) == bytes(3 * CLUSTER)
        await disk.pwrite(b"end", 3 * CLUSTER + 509)
    async with open_image("disk.qed", storage=memory.copy()) as disk:
        assert disk.size == 3 * CLUSTER + 512
        assert await disk.pread(3, 3 * CLUSTER + 509) == b"end"


async def test_truncate_same_size_does_nothing() -> None:
    storage = RecorderStorage(empty())
    async with open_image("disk.qed", "r+", storage=storage) as disk:
        await disk.truncate(SIZE)
        assert storage.log == []


@pytest.mark.parametrize(
    ("size", "number"),
    [
        (SIZE - 512, errno.ENOTSUP),
        (0, errno.ENOTSUP),
        (-512, errno.ENOTSUP),
        (SIZE + 1, errno.EINVAL),
        (1 << 50, errno.EINVAL),
    ],
)
async def test_truncate_to_a_size_that_cannot_be_raises(
    disk: Image, size: int, number: int
) -> None:
    with pytest.raises(RequestError) as caught:
        await disk.truncate(size)
    assert caught.value.errno == number
    assert disk.size == SIZE


async def test_truncate_to_the_most_the_tables_map_works() -> None:
    async with open_image("disk.qed", "r+", storage=empty()) as disk:
        most = 1024 * 1024 * CLUSTER
        await disk.truncate(most)
        assert await disk.pread(1, most - 1) == b"\0"
        await disk.pwrite(b"x", most - 1)
        assert await disk.pread(2, most - 2) == b"\0x"


# ------------------------------------------------------------------- the whole


async def test_block_status_and_extents_agree(disk: Image) -> None:
    runs = [extent async for extent in disk.extents()]
    assert runs == await disk.block_status(0, SIZE)
    assert [(run.start, run.kind) for run in runs] == [
        (0, ExtentKind.UNALLOCATED),
        (CLUSTER, ExtentKind.DATA),
        (3 * CLUSTER, ExtentKind.UNALLOCATED),
    ]


async def test_check_clean_image_finds_nothing(disk: Image) -> None:
    result = await disk.check()
    assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
    await disk.pwrite(b"still works", 9 * CLUSTER)


async def test_flush_reaches_the_storage_and_not_with_unsafe() -> None:
    for cache, flushes in (("writeback", 1), ("unsafe", 0)):
        storage = FaultStorage(empty())
        async with open_image("disk.qed", "r+", storage=storage, cache=cache) as disk:  # type: ignore[arg-type]
            await disk.flush()
            assert storage.count("flush") == flushes


async def test_writethrough_write_is_flushed_when_it_returns() -> None:
    storage = RecorderStorage(empty())
    async with open_image("disk.qed", "r+", storage=storage, cache="writethrough") as disk:
        await disk.pwrite(b"x", 0)
        await disk.pwrite(b"y", 0)
        assert type(storage.log[-1]).__name__ == "FlushRecord"


# ------------------------------------------------------------ closed, read-only

CALLS: dict[str, Call] = {
    "pread": lambda disk: disk.pread(1, 0),
    "pread of nothing": lambda disk: disk.pread(0, 0),
    "readinto": lambda disk: disk.readinto(bytearray(1), 0),
    "preadv": lambda disk: disk.preadv([bytearray(1)], 0),
    "preadv of nothing": lambda disk: disk.preadv([], 0),
    "block_status": lambda disk: disk.block_status(0, 1),
    "block_status of nothing": lambda disk: disk.block_status(0, 0),
    "extents": lambda disk: disk.extents().__anext__(),  # type: ignore[dict-item,return-value]
    "flush": lambda disk: disk.flush(),
    "check": lambda disk: disk.check(),
}
CHANGES: dict[str, Call] = {
    "pwrite": lambda disk: disk.pwrite(b"x", 0),
    "pwritev": lambda disk: disk.pwritev([b"x"], 0),
    "write_zeroes": lambda disk: disk.write_zeroes(1, 0),
    "discard": lambda disk: disk.discard(1, 0),
    "truncate": lambda disk: disk.truncate(2 * SIZE),
    "repair": lambda disk: disk.check(repair=True),
}
NOTHING: dict[str, Call] = {
    "pwrite of nothing": lambda disk: disk.pwrite(b"", 0),
    "pwritev of nothing": lambda disk: disk.pwritev([], 0),
    "write_zeroes of nothing": lambda disk: disk.write_zeroes(0, 0),
    "discard of nothing": lambda disk: disk.discard(0, 0),
    "truncate to the same": lambda disk: disk.truncate(SIZE),
}
ALL = CALLS | CHANGES | NOTHING


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["r", "r+"])
async def test_closed_image_refuses_every_call(name: str, mode: Any) -> None:
    disk = await open_image("disk.qed", mode, storage=empty())
    await disk.pread(1, 0)
    await disk.close()
    with pytest.raises(ImageClosed):
        await ALL[name](disk)


async def test_closed_image_still_knows_its_facts() -> None:
    disk = await open_image("disk.qed", storage=empty())
    await disk.close()
    await disk.close()
    assert disk.closed
    assert (disk.size, disk.cluster_size, disk.stats.writes) == (SIZE, CLUSTER, 0)


@pytest.mark.parametrize("name", CHANGES)
async def test_read_only_image_refuses_changes(name: str) -> None:
    storage = RecorderStorage(empty())
    async with open_image("disk.qed", storage=storage) as disk:
        assert disk.readonly
        with pytest.raises(ReadOnly) as caught:
            await CHANGES[name](disk)
        assert caught.value.errno == errno.EROFS
        await disk.flush()
        assert storage.log == []


async def test_failed_image_refuses_writes_and_reads_go_on() -> None:
    storage = FaultStorage(empty())
    disk = await open_image("disk.qed", "r+", storage=storage)
    await disk.pwrite(b"kept", 0)
    storage.add(Fault("error", op="flush", errno=errno.ENOSPC))
    with pytest.raises(StorageError) as first:
        await disk.flush()
    assert first.value.errno == errno.ENOSPC
    for name in ("pwrite", "write_zeroes", "discard", "truncate"):
        with pytest.raises(ImageFailed) as caught:
            await CHANGES[name](disk)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.__cause__ is first.value
    assert await disk.pread(4, 0) == b"kept"
    with pytest.raises(ImageFailed):
        await disk.close()
    assert disk.closed


async def test_storage_errors_carry_their_numbers(disk: Image) -> None:
    storage = FaultStorage(empty())
    async with open_image("disk.qed", "r+", storage=storage) as image:
        await image.pwrite(b"x" * CLUSTER, 0)
        storage.add(Fault("error", event=Event.READ_AIO))
        with pytest.raises(StorageError) as caught:
            await image.pread(100, 10)
        assert (caught.value.errno, caught.value.length) == (errno.EIO, 100)
        assert caught.value.offset is not None
        assert caught.value.offset % CLUSTER == 10
        assert await image.pread(1, 10) == b"x"


# ------------------------------------------------------------------ with blocks


async def use_and_fail_to_close(raise_: type[Exception] | None = None) -> None:
    storage = FaultStorage(empty())
    async with open_image("disk.qed", "r+", storage=storage) as disk:
        await disk.pwrite(b"x", 0)
        storage.add(Fault("error", op="flush"))
        if raise_ is not None:
            raise raise_
    assert disk.closed


async def test_with_body_error_and_close_error_keeps_the_first_with_a_note() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        await use_and_fail_to_close(ZeroDivisionError)
    assert [note for note in caught.value.__notes__ if "'disk.qed'" in note]


async def test_with_close_error_alone_is_raised() -> None:
    with pytest.raises(StorageError):
        await use_and_fail_to_close()


async def test_with_body_error_closes_without_a_note() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with open_image("disk.qed", storage=empty()) as disk:
            raise ZeroDivisionError
    assert disk.closed
    assert not hasattr(caught.value, "__notes__")


async def test_awaited_image_is_a_context_manager_too() -> None:
    async with await open_image("disk.qed", storage=empty()) as disk:
        assert await disk.pread(1, 0) == b"\0"
    assert disk.closed


async def test_with_cancelled_body_closes_the_image() -> None:
    opened = asyncio.get_running_loop().create_future()

    async def use() -> None:
        async with open_image("disk.qed", "r+", storage=empty()) as disk:
            await disk.pwrite(b"x", 0)
            opened.set_result(disk)
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    disk = await opened
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert disk.closed
    assert Features.NEED_CHECK not in disk.features


# ------------------------------------------------------------------------- open


@pytest.mark.parametrize(
    "argument",
    [
        {"mode": "w"},
        {"mode": "rb"},
        {"cache": "write-back"},
        {"check": "always"},
        {"l2_cache_size": "lots"},
        {"l2_cache_size": -1},
    ],
    ids=str,
)
def test_open_wrong_argument_raises_before_anything_is_opened(argument: Any) -> None:
    with pytest.raises(RequestError):
        open_image("/no/such/file", **argument)


def test_open_is_the_public_name() -> None:
    assert qedasync.open is open_image
    assert qedasync.Image is Image


async def test_open_unknown_storage_raises(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(blank(SIZE, CLUSTER, 2))
    with pytest.raises(RequestError):
        await open_image(path, storage="tape")


@pytest.mark.parametrize("mode", ["r", "r+"])
async def test_open_missing_file_raises_and_makes_none(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "none.qed"
    with pytest.raises(ImageNotFound) as caught:
        await open_image(path, mode)
    assert caught.value.errno == errno.ENOENT
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"Q", b"QFI\xfb" + bytes(5000), bytes(1 << 16), b"not a disk image at all" * 99],
    ids=["empty", "one byte", "qcow2", "zeroes", "text"],
)
@pytest.mark.parametrize("mode", ["r", "r+"])
async def test_open_something_else_raises_and_leaves_it_alone(
    tmp_path: Path, content: bytes, mode: Any
) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(content)
    with pytest.raises(HeaderError) as caught:
        await open_image(path, mode)
    assert caught.value.field == "magic"
    assert path.read_bytes() == content


@pytest.mark.parametrize("length", [4, 63, 64, CLUSTER, 3 * CLUSTER - 512])
async def test_open_truncated_file_raises(length: int) -> None:
    storage = MemoryStorage(blank(SIZE, CLUSTER, 2)[:length])
    with pytest.raises(HeaderError):
        await open_image("disk.qed", "r+", storage=storage)
    with pytest.raises(StorageError):
        await storage.flush()  # it was the image's, and is closed


async def test_open_unknown_feature_raises_with_the_bits() -> None:
    content = bytearray(blank(SIZE, CLUSTER, 2))
    content[17] = 0x80
    with pytest.raises(UnsupportedFeature) as caught:
        await open_image("disk.qed", storage=MemoryStorage(bytes(content)))
    assert caught.value.value == 0x8000
    assert caught.value.errno == errno.ENOTSUP


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file")
async def test_open_for_writing_read_only_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(blank(SIZE, CLUSTER, 2))
    path.chmod(0o444)
    with pytest.raises(AccessDenied):
        await open_image(path, "r+")
    async with open_image(path) as disk:
        assert await disk.pread(1, 0) == b"\0"


async def test_open_a_directory_raises_a_qed_error(tmp_path: Path) -> None:
    with pytest.raises(QEDError):
        await open_image(tmp_path)


@pytest.mark.parametrize("kind", ["auto", "aiofiles", "memory"])
async def test_open_by_kind_of_storage_reads_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(blank(SIZE, CLUSTER, 2))
    async with open_image(path, "r+", storage=kind) as disk:
        await disk.pwrite(b"text", 0)
        assert await disk.pread(4, 0) == b"text"
    async with open_image(str(path)) as disk:
        assert await disk.pread(4, 0) == (bytes(4) if kind == "memory" else b"text")
    async with open_image(os.fsencode(path)) as disk:  # type: ignore[arg-type]
        assert disk.path == str(path)


async def test_open_small_l2_cache_sizes_work() -> None:
    for size in (0, "64K", 4096):
        async with open_image("disk.qed", "r+", storage=empty(), l2_cache_size=size) as disk:
            await disk.pwrite(b"x", 0)
            assert await disk.pread(1, 0) == b"x"


async def test_open_dirty_image_is_repaired_by_writers_only() -> None:
    content = bytearray(blank(SIZE, CLUSTER, 2) + bytes(CLUSTER))
    content[16] |= Features.NEED_CHECK
    for mode, check, dirty in (("r", "auto", True), ("r+", "never", True), ("r+", "auto", False)):
        memory = MemoryStorage(bytes(content))
        async with open_image("d.qed", mode, storage=memory, check=check) as disk:  # type: ignore[arg-type]
            assert (Features.NEED_CHECK in disk.features) is dirty
        assert bool(memory.snapshot()[16] & Features.NEED_CHECK) is dirty
