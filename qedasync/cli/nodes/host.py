"""The node that ends a stack: a file of the host."""

from __future__ import annotations

import os
import stat
import sys

import qedasync
from qedasync.cli.nodes.layer import How, Layer, LoopNeeded
from qedasync.cli.nodes.values import Options, choice, flag, number, refuse_rest, text
from qedasync.cli.options import ToolError

__all__ = ["open_host"]


async def open_host(
    driver: str, options: Options, how: How, *, info_only: bool, at_once: bool = False
) -> Layer:
    """Open a file as ``file``, ``host_device`` or ``host_cdrom``.

    Args:
        options: the node's own; all are taken.
        info_only: nobody reads the guest's data: other readers and writers may be there.
        at_once: no event loop runs.

    Raises:
        ToolError: it cannot be opened; in QEMU's words.
        LoopNeeded: nor at once.
    """
    if at_once and (how.direct or sys.platform != "linux"):
        raise LoopNeeded  # there is no such storage
    path = text(options.pop("filename", None))
    if not path:
        raise ToolError(f"The '{driver}' block driver requires a file name")
    locks = _take_host(options, how)
    _check_kind(driver, path, how)
    role = _role(how, info_only) if locks else None
    try:
        storage = await qedasync.open_storage(
            path,
            "blocking" if at_once else "auto",
            writable=how.writable,
            direct=how.direct,
            lock=role,
        )
        taken = os.stat(path).st_blocks * 512
    except qedasync.ImageLocked as error:
        raise ToolError(_lock_message(error, path)) from error
    except (OSError, ValueError) as error:  # a ValueError: a NUL in the path
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error)
        raise ToolError(f"Could not open '{path}': {reason}") from error
    try:
        refuse_rest(driver, options, protocol=True)
    except ToolError:
        await storage.close()
        raise
    opened = {"driver": driver, "filename": path}
    return Layer(driver, storage, opened, path, taken, file=path)


def _take_host(options: Options, how: How) -> bool:
    """Take a file's own options; answers whether to lock.

    How the host does its work (``aio``) is for the storage to choose; only nonsense is refused.
    """
    locking = choice(options, "locking", ("auto", "on", "off"), "auto")
    aio = choice(options, "aio", ("threads", "native", "io_uring"), "threads")
    number(options, "aio-max-batch", 0)
    flag(options, "drop-cache", True)
    flag(options, "x-check-cache-dropped")
    manager = text(options.pop("pr-manager", None))
    if aio == "native" and not how.direct:
        raise ToolError(
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        )
    if manager is not None:
        raise ToolError(f"No persistent reservation manager with id '{manager}'")
    return locking != "off"


def _role(how: How, info_only: bool) -> qedasync.LockRole | None:
    if how.force_share:
        return None
    if how.writable:
        return qedasync.LockRole.READ_WRITE
    return qedasync.LockRole.INFO if info_only else qedasync.LockRole.READ_ONLY


def _check_kind(driver: str, path: str, how: How) -> None:
    """The refusals of a driver that is not for this kind of file."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # for the opening to report
    if stat.S_ISDIR(mode) and how.writable:
        return  # likewise: the host opens a directory only for reading
    if driver == "file" and not stat.S_ISREG(mode):
        raise ToolError(f"'file' driver requires '{path}' to be a regular file")
    if driver != "file" and not stat.S_ISBLK(mode) and not stat.S_ISCHR(mode):
        raise ToolError(
            f"'{driver}' driver requires '{path}' to be either a character or block device"
        )


def _lock_message(error: qedasync.ImageLocked, path: str) -> str:
    """QEMU's words, which say what was asked for and not granted."""
    said = str(error.strerror)
    if "has locked it" in said:
        return "Failed to lock byte 100"
    shared = "" if "forbids this use" in said else "shared "
    return f'Failed to get {shared}"write" lock Is another process using the image [{path}]?'
