"""``qedasync dd``: a part of an image as a new one, in dd's words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qedasync.cli.common import (
    BACKING,
    FORCE_SHARE,
    FORMATS,
    IMAGE_OPTS,
    OBJECT,
    open_named,
    refuse_object,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.run import say
from qedasync.errors import QEDError

if TYPE_CHECKING:
    from qedasync.cli.nodes import Node

__all__ = ["VERB", "main"]

VERB = Verb(
    name="dd",
    summary="write a part of an image as a new one",
    names="[bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    options=(
        Option("f", "", "FMT", "INPUT's format; looked for unless said", FORMATS),
        Option("O", "", "FMT", "OUTPUT's format; raw unless said", FORMATS),
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Writes OUTPUT anew. Blocks are of bs bytes, 512 unless said; skip of them are left out at the
    beginning of INPUT. As with qemu-img, and other than with dd, count is where to stop, counted
    from the beginning of INPUT: skip=1 count=3 are two blocks. The size is rounded up to 512.

    All of it is written, zeroes too: 'qedasync convert' leaves them out.
    """,
    examples=(
        Example("qedasync dd bs=1M count=1 if=disk.qed of=first.raw", "The first MiB"),
        Example("qedasync dd -O qed bs=64k skip=16 if=disk.raw of=rest.qed", "Without the first"),
    ),
)

_DEFAULT_BLOCK = 512
_MAX_BLOCK = (1 << 31) - 1
_PIECE = 1 << 20
_MAX_SIZE = (1 << 63) - 1


@dataclass(slots=True)
class _Wish:
    """The operands.

    Attributes:
        block: bytes.
        count: where to stop, in blocks; None for the end.
        skip: where to begin, in blocks.
    """

    source: str | None = None
    target: str | None = None
    block: int = _DEFAULT_BLOCK
    count: int | None = None
    skip: int = 0

    def range(self, size: int) -> tuple[int, int]:
        """What of an image of ``size`` bytes is wanted: start and end; equal if it is nothing."""
        end = size if self.count is None else min(size, self.count * self.block)
        return min(self.skip * self.block, end), end

    def skips_too_much(self, size: int) -> bool:
        """Whether it would begin behind its end."""
        return self.skip * self.block > self.range(size)[1]


def main(words: Sequence[str]) -> int:
    """Run ``qedasync dd``; answers the exit code."""
    from qedasync.cli.run import run_async

    parsed = parse(VERB, words)
    refuse_object(parsed)
    wish = _operands(parsed.names)
    if wish.source is None or wish.target is None:
        raise ToolError("Must specify both input and output files")
    run_async(_dd(parsed, wish, wish.source, wish.target))
    return 0


def _operands(words: Sequence[str]) -> _Wish:
    from qedasync.cli.sizes import size_word

    wish = _Wish()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in ("bs", "count", "if", "of", "skip"):
            raise ToolError(f"unrecognized operand {name}")
        if name == "if":
            wish.source = value
        elif name == "of":
            wish.target = value
        elif name == "bs":
            wish.block = size_word("bs", value, 1, _MAX_BLOCK)
        elif name == "count":
            wish.count = size_word("count", value)
        else:
            wish.skip = size_word("skip", value)
    return wish


async def _dd(parsed: Parsed, wish: _Wish, source: str, target: str) -> None:
    from qedasync.cli.format_options import parse_format_options
    from qedasync.cli.nodes import access_from
    from qedasync.cli.target import NewImage, new_image
    from qedasync.cli.witness import closing

    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(closing(await open_named(parsed, source)))
        fmt = parsed.last("O", "raw") or ""
        if fmt not in FORMATS:
            raise ToolError("Unknown file format")
        start, end = wish.range(node.disk.size)
        values = {**parse_format_options("", fmt, target), "size": end - start}
        access = access_from(parsed, writable=True, force_share=False)
        new = NewImage(target, fmt, values, "error while creating output image", access)
        out = await stack.enter_async_context(new_image(new))
        if wish.skips_too_much(node.disk.size):
            say(f"{source}: cannot skip to specified offset")
        await _copy(node, out, start, end)


async def _copy(source: Node, target: Node, start: int, end: int) -> None:
    """All bytes of the range, some pieces at a time."""
    import asyncio

    async def move(pos: int) -> None:
        length = min(_PIECE, end - pos)
        try:
            data = await source.disk.pread(length, pos)
        except QEDError as error:
            raise _failed("reading from input", error) from error
        try:
            await target.disk.pwrite(data, pos - start)
        except QEDError as error:
            raise _failed("writing to output", error) from error

    for pos in range(start, end, _PIECE):
        await move(pos)
        await asyncio.sleep(0)


def _failed(doing: str, error: QEDError) -> ToolError:
    from qedasync.cli.witness import reason

    return ToolError(f"error while {doing} image file: {reason(error)}")
