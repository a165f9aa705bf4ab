"""``qedasync resize``: change the size that the guest sees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qedasync.cli.common import (
    BACKING,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    QUIET,
    open_named,
    refuse_object,
)
from qedasync.cli.options import Example, HelpAsked, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.sizes import whole_sectors
from qedasync.errors import QEDError, RequestError

if TYPE_CHECKING:
    from qedasync.cli.nodes import Node

__all__ = ["VERB", "main"]

_MODES = ("off", "metadata", "falloc", "full")

VERB = Verb(
    name="resize",
    summary="change the size that the guest sees",
    names="FILENAME [+|-]SIZE",
    options=(
        FORMAT,
        QUIET,
        Option("", "shrink", "", "allow a smaller size: what lies beyond it is lost"),
        Option("", "preallocation", "MODE", "for the new part of a raw file", _MODES),
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Sets the size, or changes it by +SIZE or -SIZE. The new part reads as zeroes, in an overlay too.
    A QED image cannot be made smaller, a raw file can.
    """,
    examples=(
        Example("qedasync resize disk.qed 20G", "A disk of 20 GiB"),
        Example("qedasync resize disk.qed +512M", "512 MiB more"),
    ),
)

_MAX_SIZE = (1 << 63) - (1 << 30)  # what QEMU takes for a disk at most, bytes


def main(words: Sequence[str]) -> int:
    """Run ``qedasync resize``; answers the exit code."""
    from qedasync.cli.run import run_early

    if words and words[-1] in ("-h", "--help"):
        raise HelpAsked(VERB)
    if len(words) < 2:
        raise ToolError("Not enough arguments")
    # The size comes last and may begin with "-", which makes it no option.
    *others, size = words
    parsed = parse(VERB, others)
    refuse_object(parsed)
    mode = parsed.last("preallocation", "off") or ""
    if mode not in _MODES:
        raise ToolError(f"Invalid preallocation mode '{mode}'")
    if len(parsed.names) != 1:
        raise ToolError("Expecting image file name and size")
    sign = size[0] if size[:1] in ("+", "-") else ""
    amount = _amount(size.removeprefix(sign))
    change = (sign, amount, mode)
    run_early(lambda at_once: _resize(parsed, parsed.names[0], *change, at_once=at_once))
    if not parsed.has("q"):
        print("Image resized.")
    return 0


def _amount(text: str) -> int:
    from qedasync.cli.sizes import number

    try:
        value = number(text)
    except RequestError as error:
        raise ToolError(
            "Parameter 'size' expects a non-negative number below 2^64 Optional suffix k, M, G, T,"
            " P or E means kilo-, mega-, giga-, tera-, peta- and exabytes, respectively."
        ) from error
    if value >= 1 << 64:
        raise ToolError(f"Value '{text}' is out of range for parameter 'size'")
    return value


async def _resize(
    parsed: Parsed, name: str, sign: str, amount: int, mode: str, *, at_once: bool
) -> None:
    from qedasync.cli.nodes import LoopNeeded

    if at_once and mode != "off":
        raise LoopNeeded
    node = await open_named(parsed, name, writable=True, at_once=at_once)
    try:
        old = node.disk.size
        size = {"": amount, "+": old + amount, "-": old - amount}[sign]
        if not 0 < size < 1 << 63:
            raise ToolError("New image size must be positive")
        if size <= old and mode != "off":
            raise ToolError("Preallocation can only be used for growing images")
        if size < old and not parsed.has("shrink"):
            raise ToolError(
                "Use the --shrink option to perform a shrink operation. Shrinking an image will"
                " delete all data beyond the shrunken image's end."
            )
        if size > _MAX_SIZE:
            raise ToolError(f"offset({size}) exceeds maximum({_MAX_SIZE})")
        await (_resize_qed if node.format == "qed" else _resize_raw)(node, size, mode)
    finally:
        await node.close()


async def _resize_qed(node: Node, size: int, mode: str) -> None:
    if mode != "off":
        raise ToolError(f"Unsupported preallocation mode '{mode}'")
    if size % 512:
        raise ToolError("Invalid image size specified")
    if size < node.disk.size:
        raise ToolError("Shrinking images is currently not supported")
    try:
        await node.disk.truncate(size)
    except RequestError as error:
        raise ToolError("Invalid image size specified") from error
    except QEDError as error:
        number = getattr(error, "errno", None)
        why = os.strerror(number) if number else str(error)
        raise ToolError(f"Failed to update the image size: {why}") from error


async def _resize_raw(node: Node, size: int, mode: str) -> None:
    from qedasync.cli.create import preallocate

    if mode == "metadata":
        raise ToolError(f"Unsupported preallocation mode: {mode}")
    old = node.disk.size
    if not node.file and size != old:
        raise ToolError("Cannot resize NBD nodes")
    await node.disk.truncate(whole_sectors(size))
    if mode != "off":
        await preallocate(node.disk.path, old, size, mode)
