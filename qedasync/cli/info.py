"""``qedasync info``: what an image is."""

from __future__ import annotations

import math
import os
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
    beside,
    one_name,
    open_named,
    refuse_object,
    wants_json,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.run import run_early

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
    parsed = parse(VERB, words)
    refuse_object(parsed)
    name, in_json = one_name(parsed), wants_json(parsed)
    found = run_early(lambda at_once: _look(parsed, name, at_once=at_once))
    if not in_json:
        print("\n\n".join("\n".join(_lines(facts)) for facts in found))
    else:
        print(as_json(found if parsed.has("backing-chain") else found[0]))
    return 0


async def _look(parsed: Parsed, name: str, *, at_once: bool) -> list[dict[str, Any]]:
    """The facts about the image and, if asked for, the files below it."""
    from qedasync.cli.nodes import access_from, open_node

    wish = {"no_backing": True, "check": False, "at_once": at_once}
    facts, file = await _facts(await open_named(parsed, name, **wish))
    found, passed = [facts], {file}
    while parsed.has("backing-chain") and "backing-filename" in facts:
        path, fmt = _allowed(parsed, file, facts), facts.get("backing-filename-format")
        if _is_among(path, passed) or len(passed) > _MAX_CHAIN:
            raise ToolError(f"Backing file '{path}' creates an infinite loop.")
        facts, file = await _facts(await open_node(path, fmt, access_from(parsed, **wish)))
        found.append(facts)
        passed.add(file)
    return found


def _is_among(path: str, others: set[str]) -> bool:
    return os.path.realpath(path) in map(os.path.realpath, others)


def _allowed(parsed: Parsed, image: str, facts: dict[str, Any]) -> str:
    """The path of the backing file that the image names.

    Differs from QEMU: it opens whatever the image names.

    Raises:
        ToolError: the policy does not let us open it.
    """
    import qedasync
    from qedasync.cli.nodes import admit, explain

    name, path = str(facts["backing-filename"]), str(facts["full-backing-filename"])
    try:
        admit(name, path, image, parsed.last("backing"))
    except qedasync.BackingRefused as error:
        raise ToolError(explain(error, name)) from error
    return path


async def _facts(node: Node) -> tuple[dict[str, Any], str]:
    """What qemu-img says in JSON, in its order, and the file; closes the image."""
    import qedasync

    disk, name = node.disk, getattr(node.disk, "backing_file", None)
    facts = {
        "backing-filename-format": getattr(disk, "backing_format", None),
        "virtual-size": disk.size,
        "filename": node.filename,
        "cluster-size": node.cluster_size,
        "format": node.format,
        "actual-size": node.allocated,
        "full-backing-filename": None if name is None else beside(node.file or disk.path, name),
        "backing-filename": name,
        # Differs from QEMU: it says false whenever it has opened the image.
        "dirty-flag": qedasync.Features.NEED_CHECK in getattr(disk, "features", ()),
    }
    if node.format != "qed" and not node.file:
        del facts["dirty-flag"]  # of a disk over NBD nobody can tell
    await node.close()
    return {key: value for key, value in facts.items() if value is not None}, node.file


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    size = facts["virtual-size"]
    yield f"image: {facts['filename']}"
    yield f"file format: {facts['format']}"
    yield f"virtual size: {shown_size(size)} ({size} bytes)"
    actual = facts.get("actual-size")
    yield f"disk size: {'unavailable' if actual is None else shown_size(actual)}"
    if "cluster-size" in facts:
        yield f"cluster_size: {facts['cluster-size']}"
    if facts.get("dirty-flag"):
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
