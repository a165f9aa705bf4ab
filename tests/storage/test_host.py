"""Calls on the host: what may be opened, and which files take inline writes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qedasync.errors import StorageError
from qedasync.storage.host import OpenedFile, open_file, seek_data
from qedasync.storage.libc import punch_hole

FAR = (1 << 32) + (1 << 20)
"""An offset that 32 bits cannot hold."""


@contextmanager
def opened(
    path: str | Path, *, writable: bool = False, direct: bool = False
) -> Iterator[OpenedFile]:
    file = open_file(os.fspath(path), writable, direct, False, None)
    try:
        yield file
    finally:
        os.close(file.fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    return path


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm")
def test_open_file_on_tmpfs_is_local() -> None:
    path = Path(f"/dev/shm/qedasync-test-{os.getpid()}")
    path.write_bytes(b"abc")
    try:
        with opened(path, writable=True) as file:
            assert file.local
            assert file.size == 3
    finally:
        path.unlink()


@pytest.mark.skipif(not os.access("/proc/version", os.R_OK), reason="there is no /proc")
def test_open_file_on_an_unknown_file_system_is_not_local() -> None:
    with opened("/proc/version") as file:
        assert not file.local


def test_open_file_direct_is_neither_local_nor_tried(path: Path) -> None:
    try:
        with opened(path, direct=True) as file:
            assert not file.local
            assert not file.nowait
    except StorageError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("the file system of the temporary directory has no O_DIRECT")


@pytest.mark.parametrize("writable", [False, True])
def test_open_file_fifo_is_refused_without_waiting(tmp_path: Path, writable: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorageError) as caught, opened(tmp_path / "fifo", writable=writable):
        pass
    assert caught.value.errno == errno.EINVAL


def test_open_file_character_device_is_refused() -> None:
    with pytest.raises(StorageError) as caught, opened("/dev/null", writable=True):
        pass
    assert caught.value.errno == errno.EINVAL


def test_punch_hole_beyond_4_gib_zeroes_that_range_only(path: Path) -> None:
    with opened(path, writable=True) as file:
        os.pwrite(file.fd, b"\x55" * 70_000, FAR)
        if not punch_hole(file.fd, FAR + 4096, 65_536):
            pytest.skip("the file system of the temporary directory has no holes")
        assert os.fstat(file.fd).st_size == FAR + 70_000
        assert os.pread(file.fd, 70_000, FAR) == (
            b"\x55" * 4096 + bytes(65_536) + b"\x55" * (70_000 - 4096 - 65_536)
        )
        assert os.pread(file.fd, 3, 0) == b"abc"


def test_punch_hole_in_a_read_only_descriptor_raises(path: Path) -> None:
    with opened(path) as file, pytest.raises(OSError, match="descriptor"):
        punch_hole(file.fd, 0, 1)


def test_seek_data_gives_data_and_the_size_after_the_last(path: Path) -> None:
    with opened(path, writable=True) as file:
        os.ftruncate(file.fd, FAR)
        assert seek_data(file.fd, 0, FAR) == 0
        found = seek_data(file.fd, 1 << 20, FAR)
        assert found in (1 << 20, FAR)  # no holes there, or one to the end
        assert seek_data(file.fd, FAR, FAR) == FAR
