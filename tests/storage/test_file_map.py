"""The map of a file: what is lent, the lease that protects it, and who gets what afterwards."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from qedasync.storage.file_map import WINDOW, FileMap
from qedasync.storage.thread_usage import major_faults

SIZE = 3 * WINDOW + 1000
CONTENT = os.urandom(SIZE)

CUT_SHORT = """
import asyncio, fcntl, os, sys, threading, time
from qedasync.storage.file_map import FileMap

async def main(path):
    size = os.path.getsize(path)
    fd = os.open(path, os.O_RDONLY)
    file = FileMap.of(fd, asyncio.get_running_loop())
    view = file.view[size - 8 :]
    cutter = threading.Thread(target=os.truncate, args=(path, 0))
    cutter.start()
    while fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
        time.sleep(0.001)
    file.refresh()
    print(bytes(view).hex(), os.path.getsize(path) == size)
    view.release()
    file.refresh()
    cutter.join()
    print(os.path.getsize(path))
    file.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    write_back(path, CONTENT)
    return path


def write_back(path: Path, content: bytes) -> None:
    """Write a file that can be dropped from the cache at once."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@asynccontextmanager
async def mapped(path: Path, *, look: float = 3600.0) -> AsyncIterator[tuple[FileMap, int]]:
    """A map and the descriptor under it; skips where there are no maps."""
    fd = os.open(path, os.O_RDONLY)
    file = FileMap.of(fd, asyncio.get_running_loop(), look=look)
    try:
        if file is None:
            pytest.skip("the file system has no leases, or no RWF_NOWAIT")
        yield file, fd
    finally:
        if file is not None:
            file.close()
        os.close(fd)


def open_to_write(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def is_refused(path: Path) -> bool:
    """Whether the lease keeps writers out."""
    try:
        open_to_write(path)
    except BlockingIOError:
        return True
    return False


def forget_pages(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


async def test_map_shows_the_file_and_cannot_be_written_through(path: Path) -> None:
    async with mapped(path) as (file, _):
        assert file.view == CONTENT
        assert file.view.readonly


async def test_probe_cached_range_is_lent_and_its_windows_remembered(path: Path) -> None:
    async with mapped(path) as (file, fd):
        assert len(os.pread(fd, SIZE, 0)) == SIZE
        assert file.probe(WINDOW - 1, 2)
        assert file.resident == {0, 1}


async def test_probe_last_window_that_is_shorter_is_lent_but_not_remembered(path: Path) -> None:
    async with mapped(path) as (file, fd):
        assert len(os.pread(fd, SIZE, 0)) == SIZE
        assert file.probe(SIZE - 1, 1)
        assert not file.resident


@pytest.mark.parametrize(("offset", "length"), [(SIZE - 1, 2), (SIZE, 1), (0, SIZE + 1)])
async def test_probe_past_the_end_is_not_lent(path: Path, offset: int, length: int) -> None:
    async with mapped(path) as (file, _):
        assert not file.probe(offset, length)


async def test_probe_range_that_is_not_cached_is_not_lent(path: Path) -> None:
    async with mapped(path) as (file, fd):
        for _ in range(200):  # the host drops a page when it likes
            forget_pages(fd)
            if not file.probe(0, 1):
                break
            file.resident.clear()
            await asyncio.sleep(0.001)
        assert not file.resident


async def test_consider_looks_at_a_window_once_a_while(path: Path) -> None:
    async with mapped(path, look=0.01) as (file, fd):
        assert len(os.pread(fd, SIZE, 0)) == SIZE
        file.consider(WINDOW + 1)
        assert file.resident == {1}
        file.resident.clear()
        file.consider(WINDOW + 2)
        assert not file.resident, "that was a moment ago"
        while not file.resident:
            await asyncio.sleep(0.001)
            file.consider(WINDOW + 2)
        assert file.resident == {1}


async def test_refresh_after_a_page_came_from_disk_every_window_is_looked_at_again(
    path: Path,
) -> None:
    write_back(path, CONTENT[:WINDOW] * 64)
    async with mapped(path) as (file, fd):
        assert len(os.pread(fd, WINDOW, 0)) == WINDOW
        assert file.probe(0, 1)
        before = major_faults()
        for _ in range(200):  # the host drops a page when it likes: here none, in one run of many
            forget_pages(fd)
            for window in range(1, 64):
                assert file.view[window * WINDOW] == CONTENT[0]
            if major_faults() != before:
                break
            await asyncio.sleep(0.001)
        else:
            pytest.skip("the host drops no page of a file")
        assert file.resident == {0}
        file.refresh()
        assert not file.resident


async def test_map_of_a_file_that_is_being_written_is_refused(path: Path) -> None:
    fd, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    try:
        assert FileMap.of(fd, asyncio.get_running_loop()) is None
    finally:
        os.close(writer)
        os.close(fd)


async def test_map_of_an_empty_file_is_refused_and_takes_no_lease(path: Path) -> None:
    os.truncate(path, 0)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert FileMap.of(fd, asyncio.get_running_loop()) is None
        open_to_write(path)
    finally:
        os.close(fd)


async def test_writer_waits_until_the_map_has_heard_of_it(path: Path) -> None:
    async with mapped(path) as (file, _):
        assert is_refused(path)
        file.refresh()
        assert not is_refused(path)
        assert not file.probe(0, 1)
        assert not file.view


async def test_writer_waits_until_the_last_view_is_gone(path: Path) -> None:
    async with mapped(path) as (file, _):
        view = file.view[5:10]
        assert is_refused(path)
        file.refresh()
        assert is_refused(path)
        assert bytes(view) == CONTENT[5:10]
        view.release()
        file.refresh()
        assert not is_refused(path)


async def test_idle_map_looks_at_its_lease_by_itself(path: Path) -> None:
    async with mapped(path, look=0.001) as (file, _):
        assert is_refused(path)
        for _ in range(5000):
            if not file.view:
                break
            await asyncio.sleep(0.001)
        assert not is_refused(path)


async def test_reader_is_not_kept_out(path: Path) -> None:
    async with mapped(path) as (file, fd):
        os.close(os.open(path, os.O_RDONLY))
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        assert file.view


async def test_close_lets_writers_in_at_once(path: Path) -> None:
    async with mapped(path) as (file, _):
        file.close()
        file.close()
        assert not is_refused(path)


async def test_close_with_a_view_keeps_file_and_lease_until_the_view_is_gone(path: Path) -> None:
    async with mapped(path) as (file, _):
        view = file.view[:10]
        file.close()
    assert bytes(view) == CONTENT[:10]
    assert is_refused(path)
    view.release()
    with suppress(BlockingIOError):  # the lease is gone with the map, if the collector is quick
        open_to_write(path)
    del view, file
    assert not is_refused(path)


async def test_file_that_is_cut_short_keeps_its_bytes_until_the_view_is_gone(path: Path) -> None:
    """In a process of its own, or a failure would be the end of this one."""
    async with mapped(path):
        pass  # skips where there are no maps
    command = [sys.executable, "-c", CUT_SHORT, os.fspath(path)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [f"{CONTENT[-8:].hex()} True", "0"], done
    assert done.returncode == 0, done
