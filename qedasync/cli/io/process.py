"""Commands about the program itself: help, quit, sleep, sigraise, abort."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qedasync.cli.io.commands import COMMANDS, find_command
from qedasync.cli.io.failure import Failed
from qedasync.cli.io.numbers import integer, size

if TYPE_CHECKING:
    from qedasync.cli.io.session import Session

__all__ = ["do_abort", "do_help", "do_quit", "do_sigraise", "do_sleep"]

_LONGEST_SLEEP = 10**12  # milliseconds
_HARMLESS = {  # what qemu-io blocks or takes for itself
    getattr(signal, name, None)
    for name in ("SIGBUS", "SIGUSR1", "SIGPIPE", "SIGALRM", "SIGIO", "SIGCHLD")
}


async def do_help(session: Session, words: Sequence[str]) -> None:
    """A line about each command, or all about one."""
    if len(words) == 1:
        sys.stdout.write("".join(one.usage() for one in COMMANDS))
        print("\nUse 'help commandname' for extended help.")
        return
    command = find_command(words[1])
    if command is None:
        raise Failed(f"command {words[1]} not found\n")
    sys.stdout.write(command.usage(words[1]) + command.text)


async def do_quit(session: Session, words: Sequence[str]) -> None:
    """No more commands."""
    session.ended = True


async def do_sleep(session: Session, words: Sequence[str]) -> None:
    """Let the requests in flight go on for a while."""
    milliseconds = integer(words[1])
    if milliseconds is None or milliseconds < 0:
        raise Failed(f"{words[1]} is not a valid number\n")
    await asyncio.sleep(min(milliseconds, _LONGEST_SLEEP) / 1000)


async def do_sigraise(session: Session, words: Sequence[str]) -> None:
    """A signal to oneself: nothing is tidied up."""
    number = size(words[1])
    if number > signal.NSIG:
        raise Failed(f"signal argument '{words[1]}' is too large to be a valid signal\n")
    if number in _HARMLESS:
        return
    sys.stdout.flush()
    if number in (signal.SIGINT, signal.SIGTERM):  # those the program listens to
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


async def do_abort(session: Session, words: Sequence[str]) -> None:
    """End as a crash would."""
    sys.stdout.flush()
    os.abort()
