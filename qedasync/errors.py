"""The exceptions of qedasync; every error that leaves the package is a :class:`QEDError`.

The tree (a second base in brackets lets ordinary handlers catch the error too)::

    QEDError
    ├── FormatError [ValueError]        what is on disk is not a usable QED image
    │   ├── HeaderError                 the header breaks a rule
    │   ├── UnsupportedFeature          a feature bit nobody here knows
    │   └── CorruptTable                a table entry that cannot be right
    ├── StorageError [OSError]          the storage failed, or refused
    │   ├── ImageNotFound [FileNotFoundError]
    │   ├── ImageExists [FileExistsError]
    │   ├── AccessDenied [PermissionError]
    │   └── ImageLocked [BlockingIOError]   another program holds the image
    ├── StateError                      the call is right, the moment is wrong
    │   ├── ImageClosed [ValueError]
    │   ├── ImageFailed [OSError]       an earlier metadata write or flush failed; reads go on
    │   └── ReadOnly [OSError]
    ├── RequestError [ValueError]       the arguments ask for what the image does not have
    └── BackingError [OSError]          the backing file is missing, broken or not allowed
        └── BackingRefused [PermissionError]

Numbers are attributes (``errno``, ``offset``, ``length``, ...), so that nobody parses a message.
Cancellation is never turned into one of these.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any

__all__ = [
    "QEDError",
    "FormatError",
    "HeaderError",
    "UnsupportedFeature",
    "CorruptTable",
    "StorageError",
    "ImageNotFound",
    "ImageExists",
    "AccessDenied",
    "ImageLocked",
    "StateError",
    "ImageClosed",
    "ImageFailed",
    "ReadOnly",
    "RequestError",
    "BackingError",
    "BackingRefused",
    "storage_error",
]


class QEDError(Exception):
    """Base of every exception that leaves qedasync."""


class FormatError(QEDError, ValueError):
    """What is on disk is not a usable QED image.

    Attributes:
        errno: the error number QEMU gives for the same fault (``EINVAL`` or ``ENOTSUP``).
        field: the header field or table at fault, e.g. ``"cluster_size"`` or ``"L2"``; may be
        empty.
        value: the number found there, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        errno: int = _errno.EINVAL,
        field: str = "",
        value: int | None = None,
    ) -> None:
        super().__init__(message)
        self.errno = errno
        self.field = field
        self.value = value


class HeaderError(FormatError):
    """The header breaks a rule of the format."""


class UnsupportedFeature(FormatError):
    """An incompatible feature bit is set that this program does not know.

    Attributes:
        value: the unknown bits.
    """

    def __init__(self, message: str, *, value: int) -> None:
        super().__init__(message, errno=_errno.ENOTSUP, field="features", value=value)


class CorruptTable(FormatError):
    """An L1 or L2 entry cannot be right.

    Attributes:
        level: 1 or 2.
        index: the entry's number in its table.
        value: the entry.
        pos: the guest position in bytes that led to it, or None.
    """

    def __init__(
        self, message: str, *, level: int, index: int, value: int, pos: int | None = None
    ) -> None:
        super().__init__(message, field=f"L{level}", value=value)
        self.level = level
        self.index = index
        self.pos = pos


class StorageError(QEDError, OSError):
    """The storage failed or refused.

    Attributes:
        errno: the host's error number.
        offset: place in the image file, in bytes, or None.
        length: bytes asked for, or None.
        filename: the file, where known.
    """

    def __init__(
        self,
        errno: int,
        message: str | None = None,
        *,
        offset: int | None = None,
        length: int | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        text = message if message is not None else os.strerror(errno)
        if path is None:
            OSError.__init__(self, errno, text)
        else:
            OSError.__init__(self, errno, text, os.fspath(path))
        self.offset = offset
        self.length = length

    def __str__(self) -> str:
        where = "" if self.filename is None else f": {self.filename!r}"
        if self.offset is not None:
            where += f" at offset {self.offset}"
        if self.length is not None:
            where += f", {self.length} bytes"
        return f"{self.strerror}{where}"


class ImageNotFound(StorageError, FileNotFoundError):
    """There is no such file."""


class ImageExists(StorageError, FileExistsError):
    """The file is there already and was not to be replaced."""


class AccessDenied(StorageError, PermissionError):
    """The host does not let us open the file this way."""


class ImageLocked(StorageError, BlockingIOError):
    """Another program, or another open image of this one, holds the file."""


class StateError(QEDError):
    """The call is right, the moment is wrong."""


class ImageClosed(StateError, ValueError):
    """The image has been closed."""


class ImageFailed(StateError, OSError):
    """An earlier metadata write or flush left an unknown outcome: reads go on, writes refuse.

    Attributes:
        errno: the error number of the failure that caused it.
    """

    def __init__(self, message: str, *, errno: int = _errno.EIO) -> None:
        OSError.__init__(self, errno, message)


class ReadOnly(StateError, OSError):
    """The image was opened with mode ``"r"``."""

    def __init__(self, message: str) -> None:
        OSError.__init__(self, _errno.EROFS, message)


class RequestError(QEDError, ValueError):
    """The arguments ask for what the image does not have.

    Attributes:
        offset, length: the request, in bytes, where there is one.
        size: the image's size in bytes, where it matters.
        errno: a host error number that fits (``EINVAL`` unless said).
    """

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        length: int | None = None,
        size: int | None = None,
        errno: int = _errno.EINVAL,
    ) -> None:
        super().__init__(message)
        self.offset = offset
        self.length = length
        self.size = size
        self.errno = errno


class BackingError(QEDError, OSError):
    """The backing file is missing, broken or not allowed.

    Attributes:
        errno: the host's error number.
        name: the backing file's name as the image records it.
    """

    def __init__(self, message: str, *, name: str, errno: int = _errno.EINVAL) -> None:
        OSError.__init__(self, errno, message)
        self.name = name

    def __str__(self) -> str:
        return str(self.strerror)


class BackingRefused(BackingError, PermissionError):
    """The backing policy does not allow this file."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message, name=name, errno=_errno.EPERM)


_BY_ERRNO: dict[int, type[StorageError]] = {
    _errno.ENOENT: ImageNotFound,
    _errno.EEXIST: ImageExists,
    _errno.EACCES: AccessDenied,
    _errno.EPERM: AccessDenied,
}


def storage_error(
    error: OSError | int,
    message: str | None = None,
    *,
    offset: int | None = None,
    length: int | None = None,
    path: str | os.PathLike[str] | None = None,
) -> StorageError:
    """The :class:`StorageError` for a host error; the caller raises it ``from`` the original.

    Args:
        error: the host's exception, or an error number. A number of None becomes ``EIO``.
        message: text instead of the host's own.
        offset, length: the transfer in the image file, in bytes.
        path: the file.
    """
    number = error if isinstance(error, int) else (error.errno or _errno.EIO)
    details: dict[str, Any] = {"offset": offset, "length": length, "path": path}
    return _BY_ERRNO.get(number, StorageError)(number, message, **details)
