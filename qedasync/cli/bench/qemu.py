"""``qemu-img bench``: what it takes, does and prints."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from errno import EIO

from qedasync import Disk
from qedasync.bench import Stream, run_stream
from qedasync.cli.bench.options import AIO
from qedasync.cli.common import CACHES, one_name, open_named
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.run import run_async
from qedasync.cli.sizes import size_word
from qedasync.errors import QEDError, StorageError

__all__ = ["aio_word", "check_native", "integer", "run"]

_INT_MAX = (1 << 31) - 1
_INTEGER = re.compile(r"\s*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)


def run(parsed: Parsed) -> int:
    """Do it; answers the exit code."""
    stream = _stream(parsed)
    name = one_name(parsed)
    if stream.flush_interval and not stream.writes:
        raise ToolError("--flush-interval is only available in write tests")
    if 0 < stream.flush_interval < stream.depth:
        raise ToolError("Flush interval can't be smaller than depth")
    return run_async(_run(parsed, name, stream))


def _stream(parsed: Parsed) -> Stream:
    """The requests that are asked for; what is wrong with the first wrong option."""
    found: dict[str, int] = {}
    for key, value in parsed.given:
        if key in _VALUES:
            found[key] = _VALUES[key](value)
        elif key == "i":
            aio_word(value)
        elif key == "t" and value not in CACHES:
            raise ToolError("Invalid cache mode")
    length = found.get("s", 4096)
    return Stream(
        count=found.get("c", 75000),
        depth=found.get("d", 64),
        length=length,
        step=found.get("S") or length,
        offset=found.get("o", 0),
        writes=parsed.has("w"),
        fill=found.get("pattern", 0),
        flush_interval=found.get("flush-interval", 0),
        drain=not parsed.has("no-drain"),
    )


def integer(text: str, what: str, low: int = 0, high: int = _INT_MAX) -> int:
    """A number as C's ``strtoul`` reads it: ``0x10`` and ``010`` too."""
    found = _INTEGER.fullmatch(text)
    if found:
        digits = found[1]
        octal = digits.startswith("0") and digits.isdigit()
        value = int(digits, 8 if octal else 0)
        if low <= value <= high:
            return value
    raise ToolError(f"Invalid {what} specified")


def aio_word(word: str) -> str:
    """What ``-i`` says."""
    if word not in AIO:
        raise ToolError(f"Invalid aio option: {word}")
    return word


_VALUES: dict[str, Callable[[str], int]] = {
    "c": lambda text: integer(text, "request count"),
    # Differs from QEMU: it takes a depth of 0 and waits forever.
    "d": lambda text: integer(text, "queue depth", low=1),
    "flush-interval": lambda text: integer(text, "flush interval"),
    "pattern": lambda text: integer(text, "pattern byte", high=255),
    "o": lambda text: size_word("offset", text),
    "s": lambda text: size_word("buffer size", text, high=_INT_MAX),
    "S": lambda text: size_word("step_size", text, high=_INT_MAX),
}


def check_native(parsed: Parsed, name: str, cache: str) -> None:
    """Raise where qemu-img would refuse ``-n`` or ``-i native``."""
    aio = [("native" if key == "n" else value) for key, value in parsed.given if key in ("i", "n")]
    if aio[-1:] == ["native"] and cache not in ("none", "directsync"):
        raise ToolError(
            f"Could not open '{name}': aio=native was specified, but it requires cache.direct=on,"
            " which was not specified."
        )


async def _run(parsed: Parsed, name: str, stream: Stream) -> int:
    cache = parsed.last("t", "writeback") or ""
    node = await open_named(parsed, name, writable=stream.writes, cache=cache)
    try:
        check_native(parsed, name, cache)
        kind = "write" if stream.writes else "read"
        print(
            f"Sending {stream.count} {kind} requests, {stream.length} bytes each,"
            f" {stream.depth} in parallel (starting at offset {stream.offset},"
            f" step size {stream.step})"
        )
        if stream.flush_interval:
            print(f"Sending flush every {stream.flush_interval} requests")
        took = await _timed(node.disk, stream)
        print(f"Run completed in {took:3.3f} seconds.")
    finally:
        await node.close()
    return 0


async def _timed(disk: Disk, stream: Stream) -> float:
    try:
        return await run_stream(disk, stream, disk.size)
    except StorageError as error:
        raise ToolError(f"Failed request: {os.strerror(error.errno or EIO)}") from error
    except QEDError as error:
        # Past the image's end, above all. On an empty image QEMU divides by zero.
        raise ToolError(f"Failed request: {os.strerror(EIO)}") from error
