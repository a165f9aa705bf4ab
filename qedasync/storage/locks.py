"""QEMU's byte-range locks on an image file (Linux open-file-description locks).

Every program that follows the protocol takes shared locks on single bytes: byte ``100 + bit`` says
"I use this permission", byte ``200 + bit`` says "nobody else may". It then asks, for each
permission it wants, whether anybody holds the matching "nobody else" byte, and the other way round.
Nothing is ever locked exclusively, so the locks are seen by QEMU's tools and seen from them.

The locks belong to the open file description: they go when it is closed, and never with another
descriptor of the same file. Source: dossier §13 (observed with qemu 7.2's tools).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from qedasync.errors import ImageLocked, storage_error

if sys.platform == "linux":
    import fcntl

__all__ = ["LockRole", "acquire_locks", "locked", "release_locks"]

_USE, _FORBID = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3  # permission bits: consistent read, write, resize
_FLOCK = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
_OFD_GETLK, _OFD_SETLK = 36, 37


class _Permissions(NamedTuple):
    """What an opener uses and what it forbids everyone else, as permission bits."""

    uses: tuple[int, ...]
    forbids: tuple[int, ...]


class LockRole(Enum):
    """Who opens the file, and so which bytes it holds and tests."""

    READ_WRITE = _Permissions((_READ, _WRITE, _RESIZE), (_WRITE, _RESIZE))
    READ_ONLY = _Permissions((_READ,), (_WRITE, _RESIZE))
    INFO = _Permissions((), (_WRITE, _RESIZE))
    SHARED_READ = _Permissions((_READ,), ())  # a raw backing file
    CREATE = _Permissions((_WRITE, _RESIZE), (_RESIZE,))
    RAW_READ_WRITE = _Permissions((_READ, _WRITE, _RESIZE), (_WRITE, _RESIZE))


def acquire_locks(fd: int, role: LockRole, path: str | os.PathLike[str]) -> None:
    """Take the role's locks, or none of them.

    Raises:
        ImageLocked: somebody holds the image in a way that forbids this one.

    A file system without such locks (``ENOLCK``, ``EINVAL``, ``EOPNOTSUPP``) gives no protection
    and no error, as with QEMU's ``file.locking=auto``.
    """
    if sys.platform != "linux":
        return
    wanted = role.value
    try:
        for bit in wanted.uses:
            _lock(fd, _USE + bit)
        for bit in wanted.forbids:
            _lock(fd, _FORBID + bit)
        blocked = [bit for bit in wanted.uses if _held_elsewhere(fd, _FORBID + bit)]
        shared = [bit for bit in wanted.forbids if _held_elsewhere(fd, _USE + bit)]
    except OSError as error:
        with suppress(OSError):  # what cannot lock need not be able to unlock
            release_locks(fd)
        if error.errno in (errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP):
            return
        if error.errno in (errno.EAGAIN, errno.EACCES):  # an exclusive lock of a stranger
            raise locked(path, "another program has locked it") from error
        raise storage_error(error, path=path) from error
    if blocked or shared:
        release_locks(fd)
        reason = "another program forbids this use" if blocked else "another program writes it"
        raise locked(path, reason)


def release_locks(fd: int) -> None:
    """Give back every lock of this open file description."""
    if sys.platform != "linux":
        return
    for start in (_USE, _FORBID):
        fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, 10, 0))


def _lock(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))


def _held_elsewhere(fd: int, byte: int) -> bool:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(fd, _OFD_GETLK, question)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def locked(path: str | os.PathLike[str], reason: str) -> ImageLocked:
    """The error for a file that others use in a way that forbids ours."""
    return ImageLocked(
        errno.EAGAIN,
        f"The image is in use: {reason}. Close the other user, or pass lock=False "
        "if you know that it does no harm",
        path=path,
    )
