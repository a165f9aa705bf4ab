"""Commands for images with a blkdebug below: break, resume, wait_break, remove_break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qedasync.cli.io.failure import Failed
from qedasync.cli.options import ToolError

if TYPE_CHECKING:
    from qedasync.cli.io.session import Session
    from qedasync.cli.nodes.debugger import Debugger

__all__ = ["do_break", "do_remove_break", "do_resume", "do_wait_break"]

_NOT_FOUND = "No such file or directory"


def _debug(session: Session, what: str) -> Debugger:
    """The blkdebug; raises Failed if there is none."""
    if session.node.debug is None:
        raise Failed(f"Could not {what}: Operation not supported\n")
    return session.node.debug


async def do_break(session: Session, words: Sequence[str]) -> None:
    """Stop the next request that comes to an event."""
    what = "set breakpoint"
    try:
        _debug(session, what).add_break(words[1], words[2])
    except ToolError as error:
        raise Failed(f"Could not {what}: {_NOT_FOUND}\n") from error


async def do_resume(session: Session, words: Sequence[str]) -> None:
    """Let a request go on that has stopped."""
    what = "resume request"
    if not _resume(_debug(session, what), words[1]):
        raise Failed(f"Could not {what}: {_NOT_FOUND}\n")


def _resume(debug: Debugger, tag: str) -> bool:
    if not debug.is_suspended(tag):
        return False
    print(f"blkdebug: Resuming request '{tag}'")
    return debug.resume(tag)


async def do_remove_break(session: Session, words: Sequence[str]) -> None:
    """Forget a breakpoint, and let go on what has stopped there.

    A breakpoint that has stopped a request is gone by itself: there is none to remove then.
    """
    what = f"remove breakpoint {words[1]}"
    debug = _debug(session, what)
    while _resume(debug, words[1]):
        pass
    if not debug.remove_break(words[1]):
        raise Failed(f"Could not {what}: {_NOT_FOUND}\n")


async def do_wait_break(session: Session, words: Sequence[str]) -> None:
    """Wait until a request has stopped.

    Differs from QEMU: without blkdebug, where none ever will, it fails instead of waiting.
    """
    await _debug(session, f"wait for breakpoint {words[1]}").wait_break(words[1])
