"""Opens a file as a storage, by the kind's name.

Each kind is imported when it is asked for: what has the better one need not wait for the others,
and a program without an event loop need not wait for asyncio.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING

from qedasync.errors import RequestError, StorageError, storage_error
from qedasync.storage.base import Storage
from qedasync.storage.locks import LockRole

if TYPE_CHECKING:
    from qedasync.storage.memory import MemoryStorage

__all__ = ["open_storage", "STORAGE_KINDS"]

STORAGE_KINDS = ("auto", "posix", "aiofiles", "memory", "blocking")

_POSIX = sys.platform == "linux"  # it stands on preadv2, SEEK_DATA and Linux's locks


async def open_storage(
    path: str | os.PathLike[str],
    kind: str = "auto",
    *,
    writable: bool = False,
    direct: bool = False,
    create: bool = False,
    lock: LockRole | None = None,
) -> Storage:
    """Open a regular file or a block device; nothing else is opened, and nothing waited for.

    Args:
        path: the file.
        kind: ``"posix"`` (fast, Linux), ``"aiofiles"`` (any platform), ``"auto"`` (the better one
            there is), ``"memory"``: the file's content as it is now; changes are forgotten; or
            ``"blocking"`` (Linux): nothing here or in the storage ever suspends, so that no event
            loop is needed, and one that runs is held up.
        writable: for reading and writing, else for reading only. A memory storage always is.
        direct: bypass the page cache.
        create: make the file if it is not there; its content is left alone if it is.
        lock: QEMU's byte-range locks to take, or None for none. Memory is locked while it is
            loaded, against writers.

    Raises:
        RequestError: there is no such kind, or it cannot be ``direct``.
        StorageError: the host refused, or it is no file to keep an image in.
        ImageLocked: another opener forbids it.

    Cancellation: waits for the host's answer; nothing stays open.
    """
    if kind not in STORAGE_KINDS:
        raise RequestError(
            f"storage is {kind!r}; it must be one of {', '.join(map(repr, STORAGE_KINDS))}"
        )
    if kind == "memory":
        return await _load(path, create, lock)
    if kind == "auto":
        kind = "posix" if _POSIX else "aiofiles"
    if kind == "posix":
        return await _open_posix(path, writable, direct, create, lock)
    if direct:
        raise RequestError(f'the {kind} storage cannot bypass the page cache (cache="none")')
    if kind == "blocking":
        return _open_blocking(path, writable, create, lock)
    return await _open_portable(path, writable, create, lock)


def _open_blocking(
    path: str | os.PathLike[str], writable: bool, create: bool, lock: LockRole | None
) -> Storage:
    if not _POSIX:
        raise RequestError("the blocking storage needs Linux; use aiofiles")
    from qedasync.storage.blocking import BlockingStorage

    return BlockingStorage.open(path, writable=writable, create=create, lock=lock)


async def _open_portable(
    path: str | os.PathLike[str], writable: bool, create: bool, lock: LockRole | None
) -> Storage:
    from qedasync.storage.workers import in_thread

    await in_thread(partial(_refuse_special, os.fsdecode(path)))
    from qedasync.storage.aiofiles import AiofilesStorage

    return await AiofilesStorage.open(path, writable=writable, create=create, lock=lock)


async def _open_posix(
    path: str | os.PathLike[str], writable: bool, direct: bool, create: bool, lock: LockRole | None
) -> Storage:
    if not _POSIX:
        raise RequestError("the posix storage needs Linux; use aiofiles")
    # Late, both: other platforms lack what they import, and few go past the page cache.
    if direct:
        from qedasync.storage.direct import DirectStorage

        return await DirectStorage.open(path, writable=writable, create=create, lock=lock)
    from qedasync.storage.posix import PosixStorage

    return await PosixStorage.open(path, writable=writable, create=create, lock=lock)


def _refuse_special(path: str) -> None:
    """Raise for a pipe and the like: opening one by name may wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return  # for the opening to report, or to make
    except OSError as error:
        raise storage_error(error, path=path) from error
    if stat.S_ISDIR(mode):
        raise StorageError(errno.EISDIR, path=path)
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise StorageError(errno.EINVAL, "Not a regular file or block device", path=path)


async def _load(path: str | os.PathLike[str], create: bool, lock: LockRole | None) -> MemoryStorage:
    """The file's content in memory; holes take none. A new one if there is no file to be had."""
    from qedasync.storage.memory import CHUNK, MemoryStorage, SparseBytes

    role = None if lock is None else LockRole.READ_ONLY
    try:
        file = await open_storage(path, lock=role)
    except FileNotFoundError:
        if not create:
            raise
        return MemoryStorage()
    content = SparseBytes()
    try:
        content.resize(file.size)
        pos = await file.next_data(0)
        while pos < file.size:
            chunk = bytearray(min(CHUNK - pos % CHUNK, file.size - pos))
            await file.read_into([chunk], pos)
            if any(chunk):
                content.write(chunk, pos)
            pos = await file.next_data(pos + len(chunk))
    finally:
        await file.close()
    return MemoryStorage(content)
