"""What stands before a backing file: what the host says of a name, and how a file is refused.

Which names pass, and in what order they are asked about, is for :mod:`qedasync.backing`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from qedasync.errors import BackingError, BackingRefused, FormatError, QEDError
from qedasync.policy import BackingRequest

__all__ = ["Place", "broken", "explained", "foreign", "refused"]


class Place(NamedTuple):
    """What the host says about a path, or why it says nothing.

    Attributes:
        path: absolute, symbolic links followed.
        image_directory: that of the image which names it, likewise.
    """

    path: str
    image_directory: str
    status: os.stat_result | None
    error: OSError | None

    @classmethod
    def look(cls, path: str, image_path: str) -> Place:
        """Ask the host; blocks."""
        real = os.path.realpath(path)
        directory = os.path.dirname(os.path.realpath(image_path))
        try:
            return cls(real, directory, os.stat(real), None)
        except OSError as error:
            return cls(real, directory, None, error)


@contextmanager
def explained(request: BackingRequest) -> Iterator[None]:
    """Say which file of which image it is that failed."""
    try:
        yield
    except BackingError:
        raise
    except QEDError as error:
        raise broken(request, str(error), getattr(error, "errno", None)) from error


def foreign(fmt: str) -> FormatError:
    return FormatError(
        f"it is a {fmt} image, not QED or raw. If qemu-nbd may open it, pass"
        " backing=qedasync.nbd.backing(), or an open disk in its place; if it is a raw disk whose"
        " guest wrote that, record its format as raw",
        errno=errno.ENOTSUP,
        field="format",
    )


def broken(request: BackingRequest, why: str, number: int | None) -> BackingError:
    return BackingError(
        f"{request.image_path!r}: cannot use the backing file {request.name!r}"
        f" ({request.path!r}): {why}",
        name=request.name,
        errno=number or errno.EIO,
    )


def refused(request: BackingRequest, why: str) -> BackingRefused:
    return BackingRefused(
        f"{request.image_path!r}: the backing file {request.name!r} ({request.path!r}) {why}."
        ' Pass backing="any" to allow every file, a function to decide for each, or False to open'
        " the image without it",
        name=request.name,
    )
