"""Commands that move bytes and wait for it: read, write, readv, writev, discard, flush."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qedasync.cli.io.failure import Failed, Misused, failing
from qedasync.cli.io.flags import Flags, take_flags
from qedasync.cli.io.numbers import MAX_REQUEST, byte, size, sizes
from qedasync.cli.io.report import Report, dump

if TYPE_CHECKING:
    from qedasync.cli.io.session import Session

__all__ = [
    "DEFAULT_BYTE",
    "check_pattern",
    "do_discard",
    "do_flush",
    "do_read",
    "do_readv",
    "do_write",
    "do_writev",
    "read_buffers",
    "show_read",
    "write_buffers",
]

DEFAULT_BYTE = 0xCD
_SECTOR = 512


def check_pattern(data: bytearray, value: int, offset: int) -> bool:
    """Whether all bytes are ``value``; says so if not.

    Args:
        offset: of the first one, for the message.
    """
    if data.count(value) == len(data):
        return True
    print(f"Pattern verification failed at offset {offset}, {len(data)} bytes")
    return False


async def read_buffers(session: Session, offset: int, lengths: Sequence[int]) -> bytearray:
    """Read into a buffer for each length, in one request; what was read.

    Raises:
        Failed: it could not be read.
    """
    session.check_range(offset, sum(lengths), "readv failed")
    buffers = [bytearray(length) for length in lengths]
    with failing("readv failed"):
        await session.disk.preadv(buffers, offset)
    return buffers[0] if len(buffers) == 1 else bytearray().join(buffers)


async def write_buffers(
    session: Session, offset: int, lengths: Sequence[int], flags: Flags, what: str
) -> None:
    """Write from a buffer for each length, in one request.

    Raises:
        Failed: it could not be written.
    """
    session.check_range(offset, sum(lengths), what)
    value = flags.get("P", DEFAULT_BYTE)
    with failing(what):
        await session.disk.pwritev([bytes([value]) * length for length in lengths], offset)
        if "f" in flags:
            await session.disk.flush()


def show_read(data: bytearray, offset: int, seconds: float, flags: Flags) -> None:
    """Print what was read, and how fast, unless the flags say otherwise."""
    if "q" in flags:
        return
    if "v" in flags:
        dump(data, offset)
    Report("read", offset, len(data), seconds).show(machine="C" in flags)


# ---------------------------------------------------------------------- read


async def do_read(session: Session, words: Sequence[str]) -> None:
    """One request into one buffer, of which a part may be compared."""
    flags = take_flags(words, "bCpqv", {"P": byte, "s": size, "l": size})
    offset, length = _place(flags)
    if "P" not in flags and "sl" in flags:
        raise Misused
    start = flags.get("s", 0)
    compared = flags.get("l", length - start)
    if compared < 0 or start + compared > length:
        raise Failed("pattern verification range exceeds end of read data\n")
    if "b" in flags:
        _refuse_state(offset, length, "read")
    session.check_range(offset, length, "read failed")
    began = time.perf_counter()
    with failing("read failed"):
        data = await session.disk.pread(length, offset)
    seconds = time.perf_counter() - began
    await session.settle()
    part = data if compared == length else data[start : start + compared]
    good = "P" not in flags or check_pattern(part, flags.get("P"), offset + start)
    show_read(data, offset, seconds, flags)
    if not good:
        raise Failed


def _place(flags: Flags) -> tuple[int, int]:
    """Offset and length, the only names there may be."""
    if len(flags.names) != 2:
        raise Misused
    offset, length = size(flags.names[0]), size(flags.names[1])
    if length > MAX_REQUEST:
        raise Failed(f"length cannot exceed {MAX_REQUEST}, given {flags.names[1]}\n")
    return offset, length


def _refuse_state(offset: int, length: int, what: str) -> None:
    _check_sectors(offset, length)
    raise Failed(f"{what} failed: Operation not supported\n")


def _check_sectors(offset: int, length: int) -> None:
    for name, value in (("offset", offset), ("count", length)):
        if value % _SECTOR:
            raise Failed(f"{value} is not a sector-aligned value for '{name}'\n")


async def do_readv(session: Session, words: Sequence[str]) -> None:
    """One request into a buffer for each length."""
    flags = take_flags(words, "Cqv", {"P": byte})
    if len(flags.names) < 2:
        raise Misused
    offset, lengths = size(flags.names[0]), sizes(flags.names[1:])
    began = time.perf_counter()
    data = await read_buffers(session, offset, lengths)
    seconds = time.perf_counter() - began
    await session.settle()
    good = "P" not in flags or check_pattern(data, flags.get("P"), offset)
    show_read(data, offset, seconds, flags)
    if not good:
        raise Failed


# --------------------------------------------------------------------- write


async def do_write(session: Session, words: Sequence[str]) -> None:
    """One request from one buffer, or zeroes."""
    flags = take_flags(words, "bcCfnpquz", {"P": byte, "s": str})
    if len(flags.names) != 2:
        raise Misused
    _check_combination(flags)
    offset, length = size(flags.names[0]), size(flags.names[1])
    if length > MAX_REQUEST and "n" not in flags:
        limit = f"length cannot exceed {MAX_REQUEST} without -n"
        raise Failed(f"{limit}, given {flags.names[1]}\n")
    if "bc" in flags:
        _check_sectors(offset, length)
    await _write(session, offset, length, flags)


def _check_combination(flags: Flags) -> None:
    """Raise Failed for flags that do not go together."""
    if "b" in flags and "z" in flags:
        raise Failed("-b and -z cannot be specified at the same time\n")
    if "f" in flags and "bc" in flags:
        raise Failed("-f and -b or -c cannot be specified at the same time\n")
    for letter in "nu":
        if letter in flags and "z" not in flags:
            raise Failed(f"-{letter} requires -z to be specified\n")
    if sum(letter in flags for letter in "zPs") > 1:
        raise Failed("Only one of -z, -P, and -s can be specified at the same time\n")


async def _write(session: Session, offset: int, length: int, flags: Flags) -> None:
    what = "write failed"
    data = b"" if "zbc" in flags else _content(flags, length)
    if "b" in flags:
        raise Failed(f"{what}: Operation not supported\n")
    session.check_range(offset, length, what)
    if ("c" in flags and "z" not in flags) or _is_slow(session, offset, length, flags):
        raise Failed(f"{what}: Operation not supported\n")
    began = time.perf_counter()
    with failing(what):
        if "z" in flags:
            await session.disk.write_zeroes(length, offset)
        else:
            await session.disk.pwrite(data, offset)
        if "f" in flags:
            await session.disk.flush()
    seconds = time.perf_counter() - began
    await session.settle()
    if "q" not in flags:
        Report("wrote", offset, length, seconds).show(machine="C" in flags)


def _is_slow(session: Session, offset: int, length: int, flags: Flags) -> bool:
    """Whether ``-n`` refuses the request: QEMU's QED driver may always have to write zeroes out."""
    whole = not length and offset % _SECTOR == 0
    return "n" in flags and session.node.format == "qed" and not whole


def _content(flags: Flags, length: int) -> bytes:
    """What to write: a file's bytes over and over, or one byte; blocks."""
    path = flags.get("s")
    if path is None:
        return bytes([flags.get("P", DEFAULT_BYTE)]) * length
    try:
        with open(path, "rb") as file:
            found = file.read(length)
    except OSError as error:
        raise Failed(err=f"{path}: {os.strerror(error.errno or 5)}\n") from error
    if not found and length:
        raise Failed(err=f"{path}: file is empty\n")
    return (found * -(-length // max(len(found), 1)))[:length]


async def do_writev(session: Session, words: Sequence[str]) -> None:
    """One request from a buffer for each length."""
    flags = take_flags(words, "Cfpq", {"P": byte})
    if len(flags.names) < 2:
        raise Misused
    offset, lengths = size(flags.names[0]), sizes(flags.names[1:])
    began = time.perf_counter()
    await write_buffers(session, offset, lengths, flags, "writev failed")
    seconds = time.perf_counter() - began
    await session.settle()
    if "q" not in flags:
        Report("wrote", offset, sum(lengths), seconds).show(machine="C" in flags)


# ------------------------------------------------------------ discard, flush


async def do_discard(session: Session, words: Sequence[str]) -> None:
    """Bytes that are not needed any more."""
    flags = take_flags(words, "Cq")
    offset, length = _place(flags)
    session.check_range(offset, length, "discard failed")
    began = time.perf_counter()
    with failing("discard failed"):
        await session.disk.discard(length, offset)
    seconds = time.perf_counter() - began
    await session.settle()
    if "q" not in flags:
        Report("discard", offset, length, seconds).show(machine="C" in flags)


async def do_flush(session: Session, words: Sequence[str]) -> None:
    """Make what was written durable."""
    with failing("flush failed"):
        await session.disk.flush()
