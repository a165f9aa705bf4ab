"""``qedasync measure``: how much room a new image would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qedasync.cli.common import (
    BACKING,
    FORCE_SHARE,
    FORMATS,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    as_json,
    open_named,
    refuse_object,
    wants_json,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.sizes import whole_sectors

if TYPE_CHECKING:
    from qedasync import Disk
    from qedasync.cli.format_options import Values

__all__ = ["VERB", "main"]

VERB = Verb(
    name="measure",
    summary="say how much room a new image would take",
    names="[FILENAME]",
    options=(
        Option("f", "", "FMT", "FILENAME's format; looked for unless said", FORMATS),
        Option("O", "", "FMT", "the new image's format; raw unless said", FORMATS),
        Option("o", "", "OPTIONS", "the new image's options, as for create"),
        Option("l", "", "SNAPSHOT", "refused: there are no snapshots in QED"),
        Option("", "size", "SIZE", "instead of FILENAME: for an empty image of that size"),
        OUTPUT,
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Prints the bytes of the file after a conversion of FILENAME, or for an empty image of --size,
    and the bytes that it could grow to.
    """,
    examples=(
        Example("qedasync measure -O qed disk.raw", "What convert would need"),
        Example("qedasync measure -O qed --size 10G", "What an empty image takes, and at most"),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run ``qedasync measure``; answers the exit code."""
    from qedasync.cli.format_options import join_words
    from qedasync.cli.run import run_early
    from qedasync.cli.sizes import size_word

    parsed = parse(VERB, words)
    refuse_object(parsed)
    text, in_json = join_words(parsed.all("o")), wants_json(parsed)
    size = parsed.last("size")
    length = None if size is None else size_word("image size", size)
    _check_names(parsed)
    values = _values(text, parsed.last("O", "raw") or "")
    required, most = run_early(lambda at_once: _measure(parsed, length, values, at_once=at_once))
    if in_json:
        print(as_json({"required": required, "fully-allocated": most}))
    else:
        print(f"required size: {required}\nfully allocated size: {most}")
    return 0


def _check_names(parsed: Parsed) -> None:
    """Raise unless there is either a name or a size, and only what goes with it."""
    size, names = parsed.has("size"), parsed.names
    if len(names) > 1:
        raise ToolError("At most one filename argument is allowed.")
    if not names and any(map(parsed.has, ("image-opts", "f", "l"))):
        raise ToolError("--image-opts, -f, and -l require a filename argument.")
    if not names and not size:
        raise ToolError("Either --size N or one filename must be specified.")
    if names and size:
        raise ToolError("--size N cannot be used together with a filename.")


def _values(text: str, fmt: str) -> Values:
    """The new image's options; ``"format"`` among them."""
    from qedasync.cli.format_options import parse_format_options

    if fmt not in FORMATS:
        raise ToolError(f"Unknown file format '{fmt}'")
    try:
        values = parse_format_options(text, fmt, "")
    except ToolError as error:
        raise ToolError(f"{str(error).removeprefix(': ')}") from error
    return {**values, "format": fmt}


async def _measure(
    parsed: Parsed, length: int | None, values: Values, *, at_once: bool
) -> tuple[int, int]:
    """The bytes needed, and at most."""
    if length is not None:
        return await _room(whole_sectors(length), values)
    node = await open_named(parsed, parsed.names[0], at_once=at_once)
    try:
        if parsed.has("l"):
            raise ToolError(
                f"Failed to load snapshot: Block format '{node.format}' used by device '' does not"
                " support temporarily loading internal snapshots"
            )
        return await _room(node.disk, values)
    finally:
        await node.close()


async def _room(source: Disk | int, values: Values) -> tuple[int, int]:
    """For a new image with the content of a disk, or of so many bytes without any."""
    if values["format"] == "raw":
        size = source if isinstance(source, int) else source.size
        return size, size
    import qedasync

    found = await qedasync.measure(
        source,
        format="qed",
        cluster_size=int(values["cluster_size"]),
        table_size=int(values.get("table_size", 4)),
    )
    return found.required, found.fully_allocated
