"""Numbers in commands, read as qemu-io reads them, and what it says of those that are none."""

from __future__ import annotations

import re

from qedasync.cli.io.failure import Failed

__all__ = ["MAX_REQUEST", "byte", "integer", "size", "sizes"]

MAX_REQUEST = (1 << 31) - 512
"""Bytes of the longest request."""

_MAX_SIZE = (1 << 63) - 1
_MAX_WORD = (1 << 64) - 1
_UNITS = {unit: 1 << 10 * power for power, unit in enumerate("bkmgtpe")}
_SIZE = re.compile(
    r"[ \t\n\v\f\r]*\+?(?:0x([0-9a-f]+)|([0-9]+)(\.[0-9]*)?)([bkmgtpe]?)", re.I | re.A
)
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)", re.I | re.A)


def size(text: str) -> int:
    """Bytes from ``64k``, ``1.5M``, ``0x200``; decimal unless it begins with 0x.

    Raises:
        Failed: it is none, or more than a size can be.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise _no_number(text)
    hexadecimal, digits, fraction, unit = found.groups()
    whole = int(hexadecimal, 16) if hexadecimal else int(digits)
    if whole > _MAX_WORD and (unit or fraction):
        raise _no_number(text)  # what comes after the digits is not looked at any more
    scale = _UNITS[unit.lower() or "b"]
    value = whole * scale + _part(text, fraction or "", scale)
    if value > _MAX_SIZE:
        raise Failed(f"Parsing error: argument too large -- {text}\n")
    if hexadecimal and scale > 1:
        from qedasync.cli.run import say

        say(f"warning: Using a multiplier suffix on hex numbers is deprecated: {text}")
    return value


def _part(text: str, fraction: str, scale: int) -> int:
    """Bytes of a fraction of a unit: in 64 bits, rounded."""
    # What is so near to one that the nearest float is one counts as nothing, as in qemu-io.
    bits = int(float(f"0{fraction}") * 2.0**64) & _MAX_WORD if fraction else 0
    if bits and scale == 1:
        raise _no_number(text)
    product = bits * scale
    return (product >> 64) + (product >> 63 & 1)


def _no_number(text: str) -> Failed:
    what = "non-numeric argument, or extraneous/unrecognized suffix"
    return Failed(f"Parsing error: {what} -- {text}\n")


def sizes(words: list[str]) -> list[int]:
    """Lengths of the buffers of one request.

    Raises:
        Failed: one of them is none, or all together are too long.
    """
    lengths: list[int] = []
    for word in words:
        length = size(word)
        if length > MAX_REQUEST:
            raise Failed(f"Argument '{word}' exceeds maximum size {MAX_REQUEST}\n")
        lengths.append(length)
        if sum(lengths) > MAX_REQUEST:
            raise Failed(f"The total number of bytes exceed the maximum size {MAX_REQUEST}\n")
    return lengths


def integer(text: str) -> int | None:
    """A number as C writes it: 0x for hexadecimal, 0 for octal; None if it is none."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        return None
    sign, digits = found.groups()
    if digits[:2] in ("0x", "0X"):
        value = int(digits, 16)
    else:
        value = int(digits, 8 if digits[0] == "0" else 10)
    return -value if sign == "-" else value


def byte(text: str) -> int:
    """What to fill a buffer with.

    Raises:
        Failed: it is no byte.
    """
    value = integer(text)
    if value is None or not 0 <= value < 256:
        raise Failed(f"{text} is not a valid pattern byte\n")
    return value
