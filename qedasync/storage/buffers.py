"""Buffers to read into."""

from __future__ import annotations

import ctypes

__all__ = ["new_buffer"]

_LARGE = 64 << 10  # from here on, filling with zeroes takes longer than the way around it

_unfilled = ctypes.pythonapi.PyByteArray_FromStringAndSize
_unfilled.restype = ctypes.py_object
_unfilled.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)


def new_buffer(length: int) -> bytearray:
    """A buffer of ``length`` bytes that is about to be filled; what is in it is undefined.

    ``bytearray(length)`` writes zeroes first: for a MiB, as much work as reading it from the cache.
    """
    if length < _LARGE:
        return bytearray(length)
    buffer: bytearray = _unfilled(None, length)
    return buffer
