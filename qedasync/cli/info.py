"""``qedasync info``: what an image is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qedasync.cli.common import (
    BACKING,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    as_json,
    one_name,
    open_named,
    refuse_object,
    wants_json,
)
from qedasync.cli.options import Example, Option, Parsed, Verb, parse

if TYPE_CHECKING:
    from qedasync.cli.nodes import Node

__all__ = ["VERB", "main", "shown_size"]

VERB = Verb(
    name="info",
    summary="say what an image is",
    names="FILENAME",
    options=(
        FORMAT,
        OUTPUT,
        Option("", "backing-chain", "", "its backing file, too, and that one's, and so on"),
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Prints the format, the size that the guest sees, the bytes that the host has given to the file,
    and the backing file's name. "cleanly shut down: no" says that a program had the image open when
    it, or the machine, ended: it is checked when it is next written.
    """,
    examples=(
        Example("qedasync info disk.qed", "What it is"),
        Example("qedasync info --output=json disk.qed", "The same for a program"),
        Example("qedasync info --backing-chain overlay.qed", "All files of an overlay"),
    ),
)

_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_MAX_CHAIN = 64


def main(words: Sequence[str]) -> int:
    """Run ``qedasync info``; answers the exit code."""
    from qedasync.cli.run import run_async

    parsed = parse(VERB, words)
    refuse_object(parsed)
    name, in_json = one_name(parsed), wants_json(parsed)
    found = run_async(_look(parsed, name))
    if not in_json:
        print("\n\n".join("\n".join(_lines(facts)) for facts in found))
    else:
        print(as_json(found if parsed.has("backing-chain") else found[0]))
    return 0


async def _look(parsed: Parsed, name: str) -> list[dict[str, Any]]:
    """The facts about the image and, if asked for, the files below it."""
    node = await open_named(parsed, name, no_backing=True, check=False)
    found = [await _facts_and_close(node)]
    return found


async def _facts_and_close(node: Node) -> dict[str, Any]:
    try:
        return _facts(node)
    finally:
        await node.close()


def _facts(node: Node) -> dict[str, Any]:
    """What qemu-img says in JSON, in its order."""
    disk: Any = node.disk
    name = getattr(disk, "backing_file", None)
    facts = {
        "backing-filename-format": getattr(disk, "backing_format", None),
        "virtual-size": disk.size,
        "filename": node.filename,
        "cluster-size": getattr(disk, "cluster_size", None),
        "format": node.format,
        "actual-size": 0,
        "full-backing-filename": name,
        "backing-filename": name,
        # Differs from QEMU: it says false whenever it has opened the image.
        "dirty-flag": "NEED_CHECK" in str(getattr(disk, "features", "")),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    size = facts["virtual-size"]
    yield f"image: {facts['filename']}"
    yield f"file format: {facts['format']}"
    yield f"virtual size: {shown_size(size)} ({size} bytes)"
    yield f"disk size: {shown_size(facts['actual-size'])}"
    if "cluster-size" in facts:
        yield f"cluster_size: {facts['cluster-size']}"
    if facts["dirty-flag"]:
        yield "cleanly shut down: no"
    if "backing-filename" in facts:
        name, full = facts["backing-filename"], facts["full-backing-filename"]
        yield f"backing file: {name}" + ("" if name == full else f" (actual path: {full})")
    if "backing-filename-format" in facts:
        yield f"backing file format: {facts['backing-filename-format']}"


def shown_size(size: int) -> str:
    """``1.5 GiB``: three digits, and the next unit from 1000 on, as qemu-img has it."""
    step = max(0, (math.frexp(size / (1000 / 1024))[1] - 1) // 10)
    return f"{size / (1 << 10 * step):.3g} {_UNITS[step]}B"
