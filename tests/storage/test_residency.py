"""What of a file is in the page cache: asked of the kernel, where it answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qedasync.storage.posix import PosixStorage
from qedasync.storage.residency import Residency

SIZE = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file that is on the disk and in the page cache."""
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(file, b"x" * SIZE)
    os.fsync(file)
    if not Residency(file).holds(0, SIZE):
        pytest.skip("this host does not say what its page cache holds")
    yield file
    os.close(file)


def test_holds_range_in_the_cache(fd: int) -> None:
    look = Residency(fd)
    assert look.holds(0, SIZE)
    assert look.holds(4095, 2)
    assert look.holds(SIZE - 1, 1)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, SIZE + 4096), (SIZE, 1)])
def test_holds_range_that_is_not_in_the_file_is_false(fd: int, offset: int, length: int) -> None:
    assert not Residency(fd).holds(offset, length)


def test_holds_range_with_a_page_that_nobody_has_read_is_false(fd: int) -> None:
    os.truncate(fd, 2 * SIZE)
    look = Residency(fd)
    assert not look.holds(SIZE - 4096, 8192)
    assert not look.holds(0, 2 * SIZE)
    assert look.holds(0, SIZE)


def test_holds_of_a_file_that_cannot_be_asked_about_is_false() -> None:
    read, write = os.pipe()
    look = Residency(read)
    assert not look.holds(0, 1)
    assert not look.holds(0, 1)
    os.close(read)
    os.close(write)


async def test_resident_of_a_closed_storage_is_false(tmp_path: Path, fd: int) -> None:
    storage = await PosixStorage.open(tmp_path / "file")
    assert storage.resident(0, SIZE)
    await storage.close()
    assert not storage.resident(0, SIZE)
