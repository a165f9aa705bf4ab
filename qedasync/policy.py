"""Which backing files an image may name: the question that is asked, and the answers there are.

Apart from :mod:`qedasync.backing`, which opens them: who only asks need not wait for the engine.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from qedasync.errors import RequestError

if TYPE_CHECKING:
    from qedasync.disk import Disk

__all__ = ["BackingPolicy", "BackingRequest", "check_policy", "local_path"]


class BackingRequest(NamedTuple):
    """A backing file about to be opened: what a policy function decides on.

    Attributes:
        name: the file's name as the image records it.
        path: where that leads: absolute, symbolic links followed; ``""`` if the name is a URL.
        image_path: the image that names it.
        depth: 1 for the backing file of the image that is opened, 2 for that one's, ...
        format: ``"raw"`` or ``"qed"`` if that is settled, None if the file is to be looked at.
            ``"qcow2"`` or the like if it has been, and is none that is opened here.
    """

    name: str
    path: str
    image_path: str
    depth: int
    format: str | None = None

    @property
    def is_beside(self) -> bool:
        """Whether it is a file in the directory of the image that names it; asks the host."""
        directory = os.path.dirname(os.path.realpath(self.image_path))
        return bool(self.path) and os.path.dirname(self.path) == directory


_Answer: TypeAlias = "bool | Disk"

BackingPolicy: TypeAlias = (
    Literal["auto", "any"] | bool | Callable[[BackingRequest], "_Answer | Awaitable[_Answer]"]
)
"""Which backing files may be opened.

``"auto"`` or True: regular files in the image's own directory, symbolic links followed.
``"any"``: every regular file or block device. False: none, the image stands alone. None of them
lets URLs pass (``nbd://...``, ``json:...``), or files of other formats than raw and QED.

A function, or a coroutine function, is asked for each name. True lets the file pass, False does
not, and an open disk is taken for it, by whatever means it was opened; it is closed with the image.
Only with a disk there is a way to URLs and other formats, for which it is asked once more when the
file has been looked at. See :func:`qedasync.nbd.backing`.
"""


def check_policy(policy: BackingPolicy) -> None:
    """Raise RequestError for what is no policy."""
    if not (isinstance(policy, bool) or policy in ("auto", "any") or callable(policy)):
        raise RequestError(
            f"backing is {policy!r}; it must be 'auto', 'any', True, False or a function"
        )


def local_path(name: str, image_path: str) -> str | None:
    """The file that a name recorded in an image means, or None if it is a URL.

    As QEMU reads names: what has a colon before any slash is a protocol's; ``file:`` is a plain
    path, which does *not* start at the image's directory.
    """
    protocol, colon, rest = name.partition(":")
    if not colon or "/" in protocol:
        return os.path.join(os.path.dirname(image_path), name)
    return rest if protocol == "file" else None
