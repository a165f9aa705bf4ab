"""``qedasync amend``: change what an image was made with, which neither QED nor raw can."""

from __future__ import annotations

from collections.abc import Sequence

from qedasync.cli.common import (
    BACKING,
    CACHES,
    FORMATS,
    IMAGE_OPTS,
    OBJECT,
    QUIET,
    cache_word,
    one_name,
    open_named,
    refuse_object,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse

__all__ = ["VERB", "main"]

VERB = Verb(
    name="amend",
    summary="change what an image was made with: refused",
    names="FILENAME",
    options=(
        Option("f", "", "FMT", "the image's format; looked for unless said", FORMATS),
        Option("o", "", "OPTIONS", "name=value[,name=value...]"),
        Option("t", "", "CACHE", "how the image is written", CACHES),
        Option("", "force", "", "as qemu-img has it"),
        Option("p", "", "", "as qemu-img has it"),
        QUIET,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    What an image was made with (cluster_size, table_size) stays. 'qedasync convert' makes another
    image of it, 'qedasync rebase -u' changes the backing file's name.
    """,
    examples=(
        Example(
            "qedasync convert -O qed -o cluster_size=4k disk.qed other.qed",
            "Do this to change the size of clusters",
        ),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync amend``; it always ends with 1."""
    from qedasync.cli.format_options import asks_for_help, join_words
    from qedasync.cli.run import run_early

    parsed = parse(VERB, words)
    refuse_object(parsed)
    text = join_words(parsed.all("o"))
    if not parsed.has("o"):
        raise ToolError("Must specify options (-o)")
    fmt = parsed.last("f")
    if asks_for_help(text) and fmt is not None and not parsed.names:
        if fmt not in FORMATS:
            raise ToolError(f"Unknown file format '{fmt}'")
        raise _refusal(fmt)
    name = one_name(parsed)
    cache_word(parsed, "t")
    raise _refusal(run_early(lambda at_once: _format(parsed, name, at_once=at_once)))


def _refusal(fmt: str) -> ToolError:
    return ToolError(f"Format driver '{fmt}' does not support option amendment")


async def _format(parsed: Parsed, name: str, *, at_once: bool) -> str:
    node = await open_named(parsed, name, at_once=at_once)
    await node.close()
    return node.format
