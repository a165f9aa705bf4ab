"""Calls on the host's files that need a word of explanation; they block, so threads make them."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from functools import lru_cache

from qedasync.errors import StorageError, storage_error
from qedasync.storage.locks import LockRole, acquire_locks

__all__ = ["NOWAIT", "datasync", "open_file", "punch_hole", "seek_data"]

NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
"""The flag of ``preadv`` that makes it fail rather than block; 0 where there is none."""

datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
"""Make a file's data durable, and what of its metadata is needed to read it."""

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


def open_file(
    path: str, writable: bool, direct: bool, create: bool, lock: LockRole | None
) -> tuple[int, int, bool]:
    """The descriptor, the size, and whether reads can be tried inline.

    Opens without blocking: a pipe, or a device that waits for something, is refused, not waited
    for.

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
        hint = None
        if direct and error.errno == errno.EINVAL:
            hint = 'The file system has no O_DIRECT; use another cache mode than "none"'
        raise storage_error(error, hint, path=path) from error
    try:
        size = _size_of(fd, path)
        if lock is not None:
            acquire_locks(fd, lock, path)
        return fd, size, not direct and _can_try(fd)
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
        os.preadv(fd, [bytearray(1)], 0, NOWAIT)
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


@lru_cache(maxsize=1)
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's fallocate; the os module has none with a mode."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Let the file system zero a range inside the file; False where it cannot."""
    fallocate = _fallocate()
    if fallocate is None:
        return False
    if fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
        return False
    raise OSError(number, os.strerror(number))
