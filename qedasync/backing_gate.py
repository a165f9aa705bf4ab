"""The gate before backing files: which names pass, and how the others are refused.

In what order a name is asked about, :mod:`qedasync.backing` says.
"""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from qedasync.disk import Disk
from qedasync.errors import BackingError, BackingRefused, FormatError, QEDError
from qedasync.policy import BackingPolicy, BackingRequest

__all__ = ["Gate", "MAX_DEPTH", "Place", "broken", "explained", "foreign", "refused"]

MAX_DEPTH = 64
"""Backing files below one image."""


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


class Gate:
    """Lets names of one chain pass, or raises.

    Args:
        trust_first: the policy is not asked about the first file.
    """

    def __init__(self, policy: BackingPolicy, *, trust_first: bool) -> None:
        self._policy = policy
        self._trusted_depth = 1 if trust_first else 0
        self._files: set[tuple[int, int]] = set()

    def pass_by(self, place: Place) -> None:
        """The image on top: no name below may come back to it."""
        if place.status is not None:
            self._files.add((place.status.st_dev, place.status.st_ino))

    def trusts(self, request: BackingRequest) -> bool:
        """Whether the caller has named it, who may use any file."""
        return request.depth <= self._trusted_depth

    def _confines(self, request: BackingRequest) -> bool:
        """Whether it has to be in the image's own directory."""
        return self._policy in ("auto", True) and not self.trusts(request)

    def admit(self, request: BackingRequest, place: Place) -> tuple[int, int]:
        """Raise unless the file may be asked about; remember which it is, and answer that."""
        if self._confines(request) and os.path.dirname(place.path) != place.image_directory:
            raise refused(request, f"is not in the image's own directory, {place.image_directory}")
        status = place.status
        if status is None:
            assert place.error is not None
            raise broken(request, str(place.error.strerror), place.error.errno) from place.error
        file = (status.st_dev, status.st_ino)
        if file in self._files:
            raise broken(request, "the chain comes back to a file it has passed", errno.ELOOP)
        self._files.add(file)
        if request.depth > MAX_DEPTH:
            raise broken(request, f"the chain is longer than {MAX_DEPTH} files", errno.ELOOP)
        return file

    def check_kind(self, request: BackingRequest, place: Place) -> None:
        """Raise unless it is an ordinary file."""
        assert place.status is not None
        mode = place.status.st_mode
        if self._confines(request) and stat.S_ISBLK(mode):
            raise refused(request, "is a block device")
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise broken(request, "it is not a regular file or block device", number)

    async def ask(self, request: BackingRequest) -> Disk | None:
        """What the policy's function says of a name: a disk, None for yes; raises for no."""
        if not callable(self._policy):
            return None
        with explained(request):
            answer = self._policy(request)
            if inspect.isawaitable(answer):
                answer = await answer
        if isinstance(answer, Disk):
            return answer
        if not answer and not self.trusts(request):
            raise refused(request, "was refused by the function passed as backing")
        return None


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
    """An image of another format is not taken for a raw disk."""
    return FormatError(
        f"it is a {fmt} image, not QED or raw. If qemu-nbd may open it, pass"
        " backing=qedasync.nbd.backing(), or an open disk in its place; if it is a raw disk whose"
        " guest wrote that, record its format as raw",
        errno=errno.ENOTSUP,
        field="format",
    )


def broken(request: BackingRequest, why: str, number: int | None) -> BackingError:
    """The file cannot be used, whoever allows it."""
    return BackingError(
        f"{request.image_path!r}: cannot use the backing file {request.name!r}"
        f" ({request.path!r}): {why}",
        name=request.name,
        errno=number or errno.EIO,
    )


def refused(request: BackingRequest, why: str) -> BackingRefused:
    """The policy does not allow the file."""
    return BackingRefused(
        f"{request.image_path!r}: the backing file {request.name!r} ({request.path!r}) {why}."
        ' Pass backing="any" to allow every file, a function to decide for each, or False to open'
        " the image without it",
        name=request.name,
    )
