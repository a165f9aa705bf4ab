"""``qedasync commit``: what an overlay holds goes down into its backing file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qedasync.cli.common import (
    BACKING,
    CACHES,
    FORMATS,
    IMAGE_OPTS,
    OBJECT,
    QUIET,
    beside,
    cache_word,
    is_path,
    one_name,
    open_named,
    refuse_object,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.progress import PROGRESS_OPTIONS, Report, progress, progress_mode
from qedasync.errors import ImageLocked, QEDError

if TYPE_CHECKING:
    from qedasync.cli.nodes import Node

__all__ = ["VERB", "main"]

VERB = Verb(
    name="commit",
    summary="move what an overlay holds into its backing file",
    names="FILENAME",
    options=(
        Option("f", "", "FMT", "the image's format; looked for unless said", FORMATS),
        Option("b", "", "FILE", "a file further down the chain instead; implies -d"),
        Option("d", "", "", "leave the overlay as it is, else it is emptied"),
        Option("t", "", "CACHE", "how they are written (writeback)", CACHES),
        Option("r", "", "RATE", "at most so many bytes a second: accepted"),
        *PROGRESS_OPTIONS,
        QUIET,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    A smaller backing file grows. The overlay reads the same before, meanwhile and afterwards, also
    if commit is killed or fails; then start it again. Other overlays on the same backing file do
    not.

    With -b, the files between no longer make sense by themselves.
    """,
    examples=(
        Example("qedasync commit overlay.qed", "Write it all into the backing file"),
        Example("qedasync commit -p -d overlay.qed", "The same, and keep the overlay's content"),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync commit``; answers the exit code."""
    from qedasync.cli.run import run_async
    from qedasync.cli.sizes import size_word

    parsed = parse(VERB, words)
    refuse_object(parsed)
    for word in parsed.all("r"):
        size_word("rate limit", word)
    name = one_name(parsed)
    cache = cache_word(parsed, "t")
    run_async(_commit(parsed, name, cache), brief=is_path(name))
    if not parsed.has("q"):
        print("Image committed.")
    return 0


async def _commit(parsed: Parsed, name: str, cache: str) -> None:
    from qedasync.cli.witness import closing

    node = await open_named(parsed, name, writable=True, write_backing=True, cache=cache)
    async with closing(node):
        with progress(progress_mode(parsed), "commit") as report:
            await _commit_open(parsed, name, node, report)
            report(1, 1)


async def _commit_open(parsed: Parsed, name: str, node: Node, report: Report) -> None:
    base = parsed.last("b")
    if base is not None:
        base = await _find_base(node, base, name)
    elif node.format != "qed" or not (node.disk.backing_file or "backing" in node.spec):
        raise ToolError("Image does not have a backing file")
    empty = base is None and not parsed.has("d")
    try:
        await node.disk.commit(base=base, empty=empty, progress=report)
    except ImageLocked as error:
        raise ToolError(f"Block job failed: {error.strerror}") from error
    except QEDError as error:
        from qedasync.cli.witness import reason

        raise ToolError(f"Block job failed: {reason(error)}") from error


async def _find_base(node: Node, base: str, name: str) -> str:
    """The path of the file of the chain that ``base`` means, seen from the image above it.

    Raises:
        ToolError: there is none.
    """
    from qedasync.cli.chain import chain_of, is_same

    async for image, path in chain_of(node):
        if is_same(path, beside(image, base)):
            return path
    raise ToolError(f"Did not find '{base}' in the backing chain of '{name}'")
