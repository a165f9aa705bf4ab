"""Functions of the C library that the os module lacks; they block, so threads call them."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import lru_cache
from typing import Any

__all__ = ["is_local", "punch_hole", "reserve_space"]

_KEEP_SIZE = 0x01
_PUNCH_HOLE_KEEP_SIZE = 0x02 | _KEEP_SIZE
_LOCAL_FILE_SYSTEMS = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # btrfs
        0xF2F52010,  # F2FS
        0x2FC12FC1,  # ZFS
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
    }
)


def is_local(fd: int) -> bool:
    """Whether the file lies on a file system that we know to be on this host."""
    fstatfs = _libc_function("fstatfs")
    if fstatfs is None:
        return False
    answer = ctypes.create_string_buffer(256)  # struct statfs begins with f_type, a long
    if fstatfs(fd, answer) != 0:
        return False
    return ctypes.c_long.from_buffer(answer).value in _LOCAL_FILE_SYSTEMS


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Let the file system zero a range inside the file; False where it cannot."""
    fallocate = _libc_function("fallocate")
    if fallocate is None:
        return False
    where, size = ctypes.c_int64(offset), ctypes.c_int64(length)
    if fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, where, size) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
        return False
    raise OSError(number, os.strerror(number))


def reserve_space(fd: int, offset: int, length: int) -> bool:
    """Let the file system find room for a range now, in one piece; False where it does not.

    The file stays as long as it is.
    """
    fallocate = _libc_function("fallocate")
    if fallocate is None:
        return False
    answer: int = fallocate(fd, _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length))
    return answer == 0


@lru_cache(maxsize=4)
def _libc_function(name: str) -> Any:
    """A function of the C library that the os module lacks, or None."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
