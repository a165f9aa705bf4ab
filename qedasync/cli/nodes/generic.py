"""Options that nodes of any driver have."""

from __future__ import annotations

import re

from qedasync.cli.nodes.layer import How
from qedasync.cli.nodes.values import Options, choice, flag, text
from qedasync.cli.options import ToolError

__all__ = ["backing_keys", "take_generic", "takes_backing_away"]


def take_generic(options: Options, how: How, names: set[str]) -> How:
    """Take the options that every node has.

    Args:
        names: of the nodes so far; the node's own is added.

    Returns: how it is opened, changed by them.

    Raises:
        ToolError: they do not fit.
    """
    direct = flag(options, "cache.direct", how.direct)
    no_flush = flag(options, "cache.no-flush", not how.flushes)
    read_only = flag(options, "read-only")
    flag(options, "auto-read-only")
    share = flag(options, "force-share", how.force_share)
    if how.writable and read_only:
        raise ToolError("Block node is read-only")
    if share and how.writable:
        raise ToolError("force-share=on can only be used with read-only images")
    zeroes = _take_zeroes(options)
    _take_node_name(options, names)
    return how._replace(
        direct=direct,
        flushes=not no_flush,
        force_share=share,
        detect_zeroes=zeroes != "off",
    )


def _take_node_name(options: Options, names: set[str]) -> None:
    name = text(options.pop("node-name", None))
    if name is None:
        return
    if not re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9._]*", name):
        raise ToolError(f"Invalid node-name: '{name}'")
    if len(name) > 31:
        raise ToolError("Node name too long")
    if name in names:
        raise ToolError(f"Duplicate nodes with node-name='{name}'")
    names.add(name)


def _take_zeroes(options: Options) -> str:
    discard = text(options.pop("discard", None)) or "ignore"
    if discard not in ("ignore", "off", "unmap", "on"):
        raise ToolError("Invalid discard option")
    zeroes = choice(options, "detect-zeroes", ("off", "on", "unmap"), "off")
    if zeroes == "unmap" and discard not in ("unmap", "on"):
        raise ToolError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to"
            " unmap"
        )
    return zeroes


def backing_keys(options: Options) -> list[str]:
    return [key for key in options if key == "backing" or key.startswith("backing.")]


def takes_backing_away(options: Options) -> bool:
    """Whether the options leave the image without a backing file; that one is taken."""
    if options.get("backing", False) not in (None, ""):
        return False
    del options["backing"]
    return True
