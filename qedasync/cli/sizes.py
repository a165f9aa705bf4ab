"""Sizes on the command line, as qemu-img takes them, and in the words it refuses them with."""

from __future__ import annotations

import re

from qedasync.cli.options import ToolError
from qedasync.errors import RequestError

__all__ = ["MAX_SIZE", "number", "size_word", "whole_sectors"]

MAX_SIZE = (1 << 63) - 1

_DOT_AND_UNIT = re.compile(r"\.(?=[bBkKmMgGtTpPeE])")
_HEX_WITH_UNIT = re.compile(r"(0[xX][0-9a-fA-F]+)([bBkKmMgGtTpPeE])")


def number(text: str) -> int:
    """Bytes from ``64k``, ``1.5G``, ``0x1000``, ``+5M`` or ``10MiB``; as qemu-img, and long forms.

    Raises:
        RequestError: it is not a size.
    """
    from qedasync import parse_size

    plain = text.lstrip(" \t\n\v\f\r")
    plain = plain[1:] if plain.startswith("+") else plain
    if not plain or not (plain[0].isascii() and plain[0].isdigit()) or plain != plain.rstrip():
        raise RequestError(f"{text!r} is not a size")
    # With a unit, a last "b" or "e" could be a digit; so qemu-img reads it, too.
    found = _HEX_WITH_UNIT.fullmatch(plain)
    if found and found[2] not in "bBeE":
        return int(found[1], 16) * parse_size(f"1{found[2]}")
    return parse_size(_DOT_AND_UNIT.sub("", plain, count=1))


def whole_sectors(size: int) -> int:
    """``size`` rounded up to 512 bytes, as every disk's is."""
    return -(-size // 512) * 512


def size_word(name: str, text: str, low: int = 0, high: int = MAX_SIZE) -> int:
    """A size from the command line.

    Args:
        name: what the message calls it, as in ``"image size"``.

    Raises:
        ToolError: it is not a size, or out of range; the words are qemu-img's.
    """
    try:
        value = number(text)
    except RequestError as error:
        if re.fullmatch(r"\s*\+?[0-9]{20,}", text):
            value = high + 1
        else:
            raise ToolError(
                f"Invalid {name} specified. You may use k, M, G, T, P or E suffixes for"
                " kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
            ) from error
    if not low <= value <= high:
        raise ToolError(f"Invalid {name} specified. Must be between {low} and {high}.")
    return value
