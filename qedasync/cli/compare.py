"""``qedasync compare``: whether two images read the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

from qedasync.cli.common import (
    BACKING,
    CACHES,
    FORCE_SHARE,
    FORMATS,
    IMAGE_OPTS,
    OBJECT,
    QUIET,
    cache_word,
    refuse_object,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.progress import PROGRESS_OPTIONS, Report, progress, progress_mode

if TYPE_CHECKING:
    from qedasync import CompareResult
    from qedasync.cli.nodes import Node

__all__ = ["VERB", "main"]

_SAME, _DIFFERENT, _NOT_OPENED, _NO_STATUS, _NOT_READ = range(5)
_SECTOR = 512
_AT_ONCE = 64 << 20  # bytes of both files; more are compared faster by two threads

VERB = Verb(
    name="compare",
    summary="say whether two images read the same",
    names="FILENAME1 FILENAME2",
    options=(
        Option("f", "", "FMT", "FILENAME1's format; looked for unless said", FORMATS),
        Option("F", "", "FMT", "FILENAME2's format; looked for unless said", FORMATS),
        Option("s", "", "", "sizes and what is allocated must be the same, too"),
        Option("T", "", "CACHE", "how they are read (writeback)", CACHES),
        *PROGRESS_OPTIONS,
        QUIET,
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Reads both, backing files included. Of images of different sizes the rest must be zeroes.

    Exit codes: 0 they are the same, 1 they differ, 2 one cannot be opened, 3 the map of one cannot
    be read, 4 the data of one cannot be read.
    """,
    examples=(
        Example("qedasync compare disk.qed disk.raw", "The same content?"),
        Example("qedasync compare -q a.qed b.qed && echo same", "For a script"),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync compare``; answers the exit code."""
    from qedasync.cli.run import run_early

    parsed = parse(VERB, words)
    with _ending_with(_NOT_OPENED):
        refuse_object(parsed)
    if len(parsed.names) != 2:
        raise ToolError("Expecting two image file names", _DIFFERENT)
    with _ending_with(_NOT_OPENED):
        cache_word(parsed, "T", "source cache")
    return run_early(lambda at_once: _compare(parsed, at_once=at_once))


@contextmanager
def _ending_with(code: int) -> Iterator[None]:
    """What goes wrong ends with this exit code."""
    try:
        yield
    except ToolError as error:
        raise ToolError(str(error), code) from error


async def _compare(parsed: Parsed, *, at_once: bool) -> int:
    from qedasync.cli.nodes import LoopNeeded
    from qedasync.cli.witness import closing

    async with AsyncExitStack() as stack:
        nodes = []
        for name, letter in zip(parsed.names, "fF", strict=True):
            with _ending_with(_NOT_OPENED):
                node = await _open(parsed, name, parsed.last(letter), at_once=at_once)
            nodes.append(await stack.enter_async_context(closing(node)))
        if at_once and sum(node.allocated or 0 for node in nodes) > _AT_ONCE:
            raise LoopNeeded
        with progress(progress_mode(parsed), "compare") as report:
            return await _compare_open(parsed, nodes, report)


async def _open(parsed: Parsed, name: str, fmt: str | None, *, at_once: bool) -> Node:
    from qedasync.cli.nodes import access_from, open_node

    image_opts = parsed.has("image-opts")
    if fmt is not None and image_opts:
        raise ToolError("--image-opts and --format are mutually exclusive")
    access = access_from(parsed, cache=parsed.last("T", "writeback"), at_once=at_once)
    return await open_node(name, fmt, access, image_opts=image_opts)


async def _compare_open(parsed: Parsed, nodes: list[Node], report: Report) -> int:
    from qedasync.cli.witness import reason
    from qedasync.jobs.comparing import Unreadable, compare

    first, second = (node.disk for node in nodes)
    talk = _Talk(report, min(first.size, second.size), quiet=parsed.has("q"))
    try:
        result = await compare(first, second, strict=parsed.has("s"), progress=talk.progress)
    except Unreadable as error:
        talk.reach(error.offset + 1)
        name = parsed.names[error.which]
        if error.mapping:
            raise ToolError(f"Sector allocation test failed for {name}", _NO_STATUS) from error
        raise ToolError(
            f"Error while reading offset {error.offset} of {name}: {reason(error)}", _NOT_READ
        ) from error
    return talk.result(result)


class _Talk:
    """Says what has been found, when qemu-img does.

    Args:
        report: shows how far it is.
        common: bytes that both images have.
    """

    def __init__(self, report: Report, common: int, *, quiet: bool) -> None:
        self._report = report
        self._common = common
        self._quiet = quiet
        self._warned = False

    def progress(self, done: int, total: int) -> None:
        self.reach(done)
        self._report(done, total)

    def reach(self, done: int) -> None:
        """So much has been looked at, or tried to."""
        if done > self._common:
            self._warn()

    def result(self, found: CompareResult) -> int:
        """Say it; the exit code."""
        if found.reason == "size":
            self._say("Strict mode: Image size mismatch!")
        elif found.reason == "allocation":
            self._say(f"Strict mode: Offset {found.offset} block status mismatch!")
        elif found.offset is not None:
            self.reach(found.offset + 1)
            self._say(f"Content mismatch at offset {found.offset // _SECTOR * _SECTOR}!")
        else:
            if found.size_mismatch:
                self._warn()
            self._say("Images are identical.")
        return _SAME if found.identical else _DIFFERENT

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            self._say("Warning: Image size mismatch!")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text)
