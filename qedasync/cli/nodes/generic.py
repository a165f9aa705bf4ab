"""Options that nodes of any driver have."""

from __future__ import annotations

from qedasync.cli.nodes.values import Options, choice, text
from qedasync.cli.options import ToolError

__all__ = ["backing_keys", "take_zeroes", "takes_backing_away"]


def backing_keys(options: Options) -> list[str]:
    return [key for key in options if key == "backing" or key.startswith("backing.")]


def takes_backing_away(options: Options) -> bool:
    """Whether the options leave the image without a backing file; that one is taken."""
    if options.get("backing", False) not in (None, ""):
        return False
    del options["backing"]
    return True


def take_zeroes(options: Options) -> str:
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
