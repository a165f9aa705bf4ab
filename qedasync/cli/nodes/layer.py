"""One open node of a stack, and what QEMU calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import qedasync
from qedasync.cli.common import FOREIGN, FORMATS
from qedasync.cli.nodes.values import Options, in_qemus_order

if TYPE_CHECKING:
    from qedasync.cli.nodes.blkdebug import BlkdebugStorage
    from qedasync.cli.nodes.debugger import Debugger

__all__ = [
    "CACHES",
    "FOREIGN",
    "FORMATS",
    "PROTOCOLS",
    "Holder",
    "How",
    "Layer",
    "LoopNeeded",
    "filename_of",
]

PROTOCOLS = ("file", "host_device", "host_cdrom", "blkdebug", "nbd")

Cache: TypeAlias = Literal["writeback", "writethrough", "unsafe"]

CACHES = {  # word -> (past the page cache, every write durable, flushes)
    "none": (True, False, True),
    "writeback": (False, False, True),
    "unsafe": (False, False, False),
    "directsync": (True, True, True),
    "writethrough": (False, True, True),
}


class Holder(NamedTuple):
    """The image whose clusters decide which parts of a node count as allocated.

    Attributes:
        disk: the image, which somebody else closes.
        start: where in it the node begins.
    """

    disk: Any
    start: int = 0


class LoopNeeded(Exception):
    """A node cannot be opened without an event loop."""


class How(NamedTuple):
    """How a node is opened: what it takes from the one above, changed by options of its own.

    Attributes:
        writable: for writing too.
        direct: past the page cache.
        write_through: every write is durable when it returns.
        flushes: a flush does something.
        force_share: take no locks.
        detect_zeroes: writes of zeroes become zero writes.
    """

    writable: bool
    direct: bool
    write_through: bool
    flushes: bool
    force_share: bool
    detect_zeroes: bool = False

    @property
    def mode(self) -> Literal["r", "r+"]:
        return "r+" if self.writable else "r"

    @property
    def cache(self) -> Cache:
        """For a disk: what its storage does not do itself."""
        if not self.flushes:
            return "unsafe"
        return "writethrough" if self.write_through else "writeback"

    def below(self, *, writable: bool) -> How:
        """For a node below."""
        return self._replace(writable=writable, detect_zeroes=False)


@dataclass(slots=True)
class Layer:
    """An open node.

    Attributes:
        driver: its driver.
        storage: its bytes; closing it closes what is below.
        disk: the same as a disk, where it is one by itself.
        options: what opens it again: the options that change what it is, and those of what is below
            as objects.
        exact: the plain name that opens the same, or "".
        allocated: bytes that the file takes on the host; None where nobody can tell.
        debug: rules and breakpoints of the blkdebug in the stack, if there is one.
        file: path of the file at the bottom, "" if it is none.
        cluster_size: of an image, here or below.
        shift: where in the file below a raw node begins.
        watcher: the blkdebug right below a format.
        holder: the QED image further below that it is all or part of, if there is one.
    """

    driver: str
    storage: qedasync.Storage
    options: Options
    exact: str
    allocated: int | None
    disk: Any = None
    debug: Debugger | None = None
    file: str = ""
    cluster_size: int | None = None
    shift: int = 0
    watcher: BlkdebugStorage | None = None
    holder: Holder | None = None

    @property
    def exact_protocol(self) -> str:
        """The plain name, if it is enough to open a format over the node."""
        return self.exact if self.driver in PROTOCOLS else ""

    def cache(self, how: How) -> Cache:
        """For the disk; where each flush is watched, it does none by itself."""
        return "writeback" if self.watcher is not None and how.flushes else how.cache

    @property
    def filename(self) -> str:
        """As QEMU reports it."""
        return filename_of(self.exact, self.options)


def filename_of(exact: str, options: Options) -> str:
    """The plain name if there is one, else the options as JSON, in QEMU's order."""
    from qedasync.cli.common import as_json

    return exact or f"json:{as_json(_in_order(options), indent=None)}"


def _in_order(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _in_order(value[key]) for key in in_qemus_order(value)}
