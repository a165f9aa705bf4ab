"""Calls on the host's files that need a word of explanation; they block, so threads make them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from qedasync.errors import StorageError, storage_error
from qedasync.storage.locks import LockRole, acquire_locks, locked

__all__ = [
    "NOWAIT",
    "OpenedFile",
    "data_runs",
    "datasync",
    "open_descriptor",
    "open_file",
    "preadv",
    "seek_data",
]

NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
"""The flag of ``preadv`` that makes it fail rather than block; 0 where there is none."""

preadv: Callable[..., int] = getattr(os, "preadv", None) or (lambda *_: -1)
"""``os.preadv``; where there is none, it is never called, for there is no :data:`NOWAIT`."""

datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
"""Make a file's data durable, and what of its metadata is needed to read it."""


class OpenedFile(NamedTuple):
    """A descriptor, and what there is to know of its file.

    Attributes:
        size: bytes.
        nowait: whether ``preadv`` takes :data:`NOWAIT`.
        local: whether writes end in the page cache of a file system on this host, and so wait for
            nothing but memory as long as the host is not short of it. Of a file that is only read
            nobody looks.
    """

    fd: int
    size: int
    nowait: bool
    local: bool


def open_file(
    path: str, writable: bool, direct: bool, create: bool, lock: LockRole | None
) -> OpenedFile:
    """Open a file for :class:`~qedasync.storage.posix.PosixStorage`.

    Args and raises: as :func:`open_descriptor`.
    """
    fd, size = open_descriptor(path, writable, direct, create, lock)
    try:
        local = writable and not direct and _is_local(fd)
        return OpenedFile(fd, size, not direct and _can_try(fd), local)
    except BaseException:
        os.close(fd)
        raise


def _is_local(fd: int) -> bool:
    from qedasync.storage.libc import is_local  # late: not everyone who opens a file needs ctypes

    return stat.S_ISREG(os.fstat(fd).st_mode) and is_local(fd)


def open_descriptor(
    path: str, writable: bool, direct: bool, create: bool, lock: LockRole | None
) -> tuple[int, int]:
    """Open a file under its locks; answers the descriptor and the file's bytes.

    Opens without blocking: a pipe, or a device that waits for something, is refused, not waited
    for.

    Args:
        lock: what to take, or None for no locks.

    Raises:
        StorageError: the host refused, or it is not a regular file or block device.
        ImageLocked: somebody's locks forbid it.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    if create:
        flags |= os.O_CREAT
    if direct:
        flags |= os.O_DIRECT
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise locked(path, "another program has a lease on it") from error
        hint = None
        if direct and error.errno == errno.EINVAL:
            hint = 'The file system has no O_DIRECT; use another cache mode than "none"'
        raise storage_error(error, hint, path=path) from error
    try:
        size = _size_of(fd, path)
        if lock is not None:
            acquire_locks(fd, lock, path)
        return fd, size
    except BaseException:
        os.close(fd)
        raise


def _size_of(fd: int, path: str) -> int:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fstat(fd).st_size
    if stat.S_ISBLK(mode):
        return os.lseek(fd, 0, os.SEEK_END)
    raise StorageError(errno.EINVAL, "Not a regular file or block device", path=path)


def _can_try(fd: int) -> bool:
    """Whether the kernel takes RWF_NOWAIT on this file (tmpfs does not)."""
    if not NOWAIT:
        return False
    try:
        preadv(fd, [bytearray(1)], 0, NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def seek_data(fd: int, offset: int, size: int) -> int:
    """The first offset from ``offset`` on that is not in a hole; ``size`` if there is none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset


def data_runs(fd: int, offset: int, end: int, count: int) -> list[tuple[int, int]]:
    """The first ``count`` runs of data in ``[offset, end)``: where each begins and ends."""
    found: list[tuple[int, int]] = []
    while offset < end and len(found) < count:
        start = seek_data(fd, offset, end)
        if start >= end:
            break
        try:
            stop = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError:
            stop = end
        offset = max(min(stop, end), start + 1)  # a hole may have come into being meanwhile
        found.append((start, offset))
    return found
