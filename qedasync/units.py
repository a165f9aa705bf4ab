"""Sizes as people write them."""

from __future__ import annotations

import re

from qedasync.errors import RequestError

__all__ = ["parse_size"]

_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
"""Suffix -> power of two; case does not matter."""

# Twenty digits are more than 64 bits: nobody means a longer number, and it would cost time.
_HEXADECIMAL = re.compile(r"0[xX]([0-9a-fA-F]{1,16})")
_DECIMAL = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?([bBkKmMgGtTpPeE]?)")


def parse_size(size: int | str) -> int:
    """Bytes from a number, or from a text like ``"64k"``, ``"1.5G"``, ``"10MiB"`` or ``"0x1000"``.

    Units are powers of 1024; ``KiB`` and ``k`` are the same. A fraction is rounded down to a byte,
    as qemu-img does. ``10GB`` is refused, for half the world means 10**10 by it.

    Raises:
        RequestError: it is not a size, or negative.
    """
    if isinstance(size, str):
        return _parse(size.strip())
    if isinstance(size, bool) or not isinstance(size, int):
        raise RequestError(f"a size is a whole number or a text like '10G', not {size!r}")
    if size < 0:
        raise RequestError(f"a size cannot be negative: {size}", size=size)
    return size


def _parse(text: str) -> int:
    if found := _HEXADECIMAL.fullmatch(text):
        return int(found[1], 16)
    # "10KiB" and "10 k" are "10k"; "B" and "iB" alone say nothing more.
    plain = re.sub(r"(?<=[0-9]) (?=[a-zA-Z])", "", text)
    plain = re.sub(r"(?<=[kKmMgGtTpPeE])iB$", "", plain)
    found = _DECIMAL.fullmatch(plain)
    if found is None or (found[2] and found[3] in ("", "b", "B")):
        raise RequestError(
            f"{text!r} is not a size; write bytes, or a number with k, M, G, T, P or E,"
            " as in '64k', '1.5G' or '10MiB'"
        )
    whole, fraction, unit = found[1], found[2] or "", found[3].lower()
    scale: int = 10 ** len(fraction)
    return (int(whole + fraction) << _UNITS[unit]) // scale
