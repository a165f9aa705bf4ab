"""Commands that let requests run beside the commands after them: aio_read, aio_write, aio_flush."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from qedasync.cli.io.failure import Failed, Misused, failing
from qedasync.cli.io.flags import Flags, take_flags
from qedasync.cli.io.numbers import byte, size, sizes
from qedasync.cli.io.report import Report
from qedasync.cli.io.transfers import check_pattern, read_buffers, show_read, write_buffers

if TYPE_CHECKING:
    from qedasync.cli.io.session import Session

__all__ = ["do_aio_flush", "do_aio_read", "do_aio_write"]

T = TypeVar("T")


async def do_aio_read(session: Session, words: Sequence[str]) -> None:
    """Begin to read into a buffer for each length."""
    flags = take_flags(words, "Ciqv", {"P": byte})
    if "i" in flags:
        print("injecting invalid read request")
        return
    if len(flags.names) < 2:
        raise Misused
    offset, lengths = size(flags.names[0]), sizes(flags.names[1:])

    def show(data: bytearray, seconds: float) -> None:
        if "P" in flags:
            check_pattern(data, flags.get("P"), offset)
        show_read(data, offset, seconds, flags)

    await session.start(_request(lambda: read_buffers(session, offset, lengths), show))


async def do_aio_write(session: Session, words: Sequence[str]) -> None:
    """Begin to write from a buffer for each length, or zeroes."""
    flags = take_flags(words, "Cfiquz", {"P": byte})
    if "i" in flags:
        print("injecting invalid write request")
        return
    if len(flags.names) < 2:
        raise Misused
    if "z" in flags and len(flags.names) > 2:
        raise Failed("-z supports only a single length parameter\n")
    if "u" in flags and "z" not in flags:
        raise Failed("-u requires -z to be specified\n")
    offset = size(flags.names[0])
    lengths = [size(flags.names[1])] if "z" in flags else sizes(flags.names[1:])

    def show(_: None, seconds: float) -> None:
        if "q" not in flags:
            Report("wrote", offset, sum(lengths), seconds).show(machine="C" in flags)

    await session.start(_request(lambda: _write(session, offset, lengths, flags), show))


async def _write(session: Session, offset: int, lengths: list[int], flags: Flags) -> None:
    what = "aio_write failed"
    if "z" not in flags:
        await write_buffers(session, offset, lengths, flags, what)
        return
    session.check_range(offset, lengths[0], what)
    with failing(what):
        await session.disk.write_zeroes(lengths[0], offset)
        if "f" in flags:
            await session.disk.flush()


async def _request(work: Callable[[], Awaitable[T]], show: Callable[[T, float], None]) -> None:
    """Do the work and say how it went. It is not said before the command has ended."""
    began = time.perf_counter()
    try:
        result = await work()
    except Failed as failure:
        await asyncio.sleep(0)
        sys.stdout.write(failure.out)
        return
    seconds = time.perf_counter() - began
    await asyncio.sleep(0)
    show(result, seconds)


async def do_aio_flush(session: Session, words: Sequence[str]) -> None:
    """Wait for all of them."""
    await session.drain()
