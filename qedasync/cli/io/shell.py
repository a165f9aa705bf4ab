"""Commands, one after the other: those of ``-c``, or those that come in on stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

from qedasync.cli.io.commands import COMMANDS, Command, find_command
from qedasync.cli.io.failure import Failed, Misused
from qedasync.cli.io.lines import open_lines
from qedasync.cli.io.session import Opening, Session
from qedasync.cli.options import ToolError
from qedasync.cli.run import EXIT_FAILED, EXIT_OK, say
from qedasync.errors import QEDError

__all__ = ["run", "run_command"]


async def run(opening: Opening | None, commands: Sequence[str], backing: str | None = None) -> int:
    """Open an image if one is named, run commands, and close it; the exit code.

    Args:
        commands: those of stdin if there are none.
        backing: the policy for images that commands open.

    Raises:
        ToolError: the image cannot be opened, or not be closed.

    Cancellation: the image is closed, requests in flight come to their end.
    """
    session = Session(backing)
    if opening is not None:
        await session.open(opening)
    try:
        good = await (_run_all(session, commands) if commands else _run_lines(session))
    except BaseException:
        with suppress(ToolError, QEDError):
            await session.close()
        raise
    await session.close()
    return EXIT_OK if good else EXIT_FAILED


async def _run_all(session: Session, commands: Sequence[str]) -> bool:
    good = True
    for command in commands:
        good = await run_command(session, command) and good
        if session.ended:
            break
    return good


async def _run_lines(session: Session) -> bool:
    good = True
    lines = open_lines(lambda: [command.name for command in COMMANDS])
    try:
        while not session.ended and (line := await lines.next()) is not None:
            good = await run_command(session, line) and good
    finally:
        lines.close()
    return good


async def run_command(session: Session, line: str) -> bool:
    """Run one command and say what goes wrong; whether it went well."""
    words = [word for word in line.split(" ") if word]
    if not words:
        return True
    command = find_command(words[0])
    if command is None:
        sys.stderr.write(f'command "{words[0]}" not found\n')
        return False
    try:
        _check(session, command, words)
        await command.run(session, words)
    except Failed as failure:
        sys.stderr.write(failure.err)
        sys.stdout.write(command.usage() if isinstance(failure, Misused) else failure.out)
    except BrokenPipeError:
        raise
    except (ToolError, QEDError, OSError) as error:
        say(str(error))
    else:
        return True
    return False


def _check(session: Session, command: Command, words: Sequence[str]) -> None:
    """Raise unless the command may be run, with that many words."""
    if command.needs_image and not session.is_open:
        raise Failed(err="no file open, try 'help open'\n")
    count, least, most = len(words) - 1, command.least, command.most
    if count < least or (most is not None and count > most):
        if most is None:
            expected = f"at least {least}"
        else:
            expected = f"{least}" if least == most else f"between {least} and {most}"
        raise Failed(
            err=f"bad argument count {count} to {words[0]}, expected {expected} arguments\n"
        )
    if command.writes and session.readonly:
        raise ToolError("Block node is read-only")
