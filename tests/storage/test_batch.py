"""What a worker thread makes of a batch: merged calls, order, growth, and whose fault it was."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.base import Write
from qedasync.storage.batch import Channel, Transfer
from qedasync.storage.posix import PosixStorage
from qedasync.storage.transfer import IOV_MAX, read_fully, write_fully


class Calls:
    """A channel's write that notes every call, and refuses data that says ``bad``."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def __call__(self, fd: int, buffers: Sequence[Any], offset: int) -> None:
        data = b"".join(buffers)
        self.made.append((offset, len(data)))
        if b"bad" in data:
            raise OSError(errno.EIO, "bad")
        write_fully(fd, buffers, offset)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def plain(offset: int, *buffers: bytes) -> Transfer:
    return Transfer(asyncio.get_running_loop(), buffers, offset, sum(map(len, buffers)))


def write_of(data: bytes, offset: int) -> Write:
    return Write(offset, [data], len(data), Event.WRITE_AIO)


async def test_run_writes_adjacent_in_any_order_leave_as_one_call(fd: int, path: Path) -> None:
    calls = Calls()
    batch = [plain(4, b"bb", b"bb"), plain(8, b"cccc"), plain(0, b"aaaa"), plain(20, b"dd")]
    Channel(fd, read_fully, calls).run_writes(batch)
    assert calls.made == [(0, 12), (20, 2)]
    assert path.read_bytes() == b"aaaabbbbcccc".ljust(20, b"\0") + b"dd"
    assert [write.error for write in batch] == [None] * 4


async def test_run_writes_one_of_a_merged_group_fails_alone(fd: int, path: Path) -> None:
    batch = [plain(0, b"aaaa"), plain(4, b"bad!"), plain(8, b"cccc")]
    Channel(fd, read_fully, Calls()).run_writes(batch)
    assert batch[0].error is None
    assert batch[1].error is not None
    assert batch[2].error is None
    assert path.read_bytes() == b"aaaa\0\0\0\0cccc"


async def test_run_writes_more_buffers_than_a_call_takes_are_cut(fd: int, path: Path) -> None:
    calls = Calls()
    Channel(fd, read_fully, calls).run_writes([plain(n, b"x") for n in range(IOV_MAX + 1)])
    assert calls.made == [(0, IOV_MAX), (IOV_MAX, 1)]
    assert path.read_bytes() == b"x" * (IOV_MAX + 1)


async def test_run_reads_one_fails_the_others_are_filled(fd: int, path: Path) -> None:
    path.write_bytes(b"abcdef")
    buffers = [bytearray(2) for _ in range(3)]
    loop = asyncio.get_running_loop()
    batch = [Transfer(loop, [b], at, 2) for b, at in zip(buffers, (0, -5, 4), strict=True)]
    Channel.of(fd, direct=False).run_reads(batch)
    assert [read.error and read.error.errno for read in batch] == [None, errno.EINVAL, None]
    assert buffers == [b"ab", b"\0\0", b"ef"]


def test_write_in_order_keeps_the_order_and_merges_neighbours(fd: int, path: Path) -> None:
    calls = Calls()
    writes = [write_of(b"aa", 4), write_of(b"bb", 6), write_of(b"c", 0), write_of(b"d", 5)]
    Channel(fd, read_fully, calls).write_in_order(writes, 0)
    assert calls.made == [(4, 4), (0, 1), (5, 1)]
    assert path.read_bytes() == b"c\0\0\0adbb"


def test_write_in_order_failing_leaves_the_later_ones_out(fd: int, path: Path) -> None:
    writes = [write_of(b"aa", 10), write_of(b"bad", 0), write_of(b"cc", 30)]
    with pytest.raises(OSError, match="bad"):
        Channel(fd, read_fully, Calls()).write_in_order(writes, 16)
    assert path.read_bytes() == b"aa".rjust(12, b"\0").ljust(16, b"\0")


@pytest.mark.parametrize(("grow_to", "size"), [(0, 9), (5, 9), (9, 9), (12, 12)])
def test_write_in_order_grow_to_never_cuts_a_longer_file(
    fd: int, path: Path, grow_to: int, size: int
) -> None:
    path.write_bytes(b"123456789")
    Channel.of(fd, direct=False).write_in_order([write_of(b"x", 0)], grow_to)
    assert path.read_bytes() == b"x23456789".ljust(size, b"\0")


async def test_run_writes_range_to_zero_keeps_its_surroundings(fd: int, path: Path) -> None:
    path.write_bytes(b"\x55" * 20_000)
    hole = Transfer(asyncio.get_running_loop(), (), 100, 10_000, zeroes=True)
    Channel.of(fd, direct=False).run_writes([hole])
    assert hole.error is None
    assert path.read_bytes() == b"\x55" * 100 + bytes(10_000) + b"\x55" * 9_900


async def test_transfer_at_an_impossible_offset_is_an_error_and_nobody_hangs(
    tmp_path: Path,
) -> None:
    storage = await PosixStorage.open(tmp_path / "file", writable=True, create=True)
    try:
        with pytest.raises(StorageError) as read:
            await storage.read_into([bytearray(1)], 1 << 64)
        with pytest.raises(StorageError) as written:
            await storage.write([bytes(1 << 20)], 1 << 64)
        assert read.value.errno == written.value.errno == errno.EINVAL
        await storage.write([b"x"], 0)
    finally:
        await storage.close()
