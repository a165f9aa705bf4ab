"""The storage without an event loop: its coroutines end without ever suspending."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from qedasync.errors import ImageLocked, ImageNotFound, StorageError
from qedasync.storage.blocking import BlockingStorage
from qedasync.storage.locks import LockRole

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it stands on Linux's calls")


def ended(call: Coroutine[Any, Any, Any]) -> None:
    """Run a call that must not suspend."""
    with pytest.raises(StopIteration):
        call.send(None)


def test_calls_without_a_loop_end_at_once(tmp_path: Path) -> None:
    storage = BlockingStorage.open(tmp_path / "x", writable=True, create=True)
    ended(storage.write([b"hello"], 3))
    ended(storage.truncate(4))
    ended(storage.flush())
    buffer = bytearray(b"?" * 6)
    ended(storage.read_into([buffer], 0))
    ended(storage.close())
    assert (bytes(buffer), storage.size) == (b"\0\0\0h\0\0", 4)


def test_open_of_missing_file_tells_its_name(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound) as caught:
        BlockingStorage.open(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")


def test_open_takes_the_role_s_locks(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    first = BlockingStorage.open(tmp_path / "x", writable=True, lock=LockRole.READ_WRITE)
    with pytest.raises(ImageLocked):
        BlockingStorage.open(tmp_path / "x", lock=LockRole.INFO)
    ended(first.close())
    ended(BlockingStorage.open(tmp_path / "x", lock=LockRole.INFO).close())


def test_open_of_a_pipe_is_refused_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError) as caught:
        BlockingStorage.open(tmp_path / "pipe")
    assert caught.value.errno == errno.EINVAL


def test_write_to_file_opened_for_reading_tells_the_place(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    storage = BlockingStorage.open(tmp_path / "x")
    with pytest.raises(StorageError) as caught:
        storage.write([b"d"], 2).send(None)
    ended(storage.close())
    assert (caught.value.errno, caught.value.offset, caught.value.length) == (errno.EBADF, 2, 1)
