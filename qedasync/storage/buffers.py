"""Buffers to read into."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

__all__ = ["new_buffer"]

_LARGE = 64 << 10  # from here on, filling with zeroes takes longer than the way around it


def new_buffer(length: int) -> bytearray:
    """A buffer of ``length`` bytes that is about to be filled; what is in it is undefined.

    ``bytearray(length)`` writes zeroes first: for a MiB, as much work as reading it from the cache.
    """
    return bytearray(length) if length < _LARGE else _maker()(None, length)


@lru_cache(maxsize=1)
def _maker() -> Callable[[None, int], bytearray]:
    """The function of CPython that makes a bytearray and leaves its content alone."""
    import ctypes  # late: who reads nothing large need not wait for it

    make = ctypes.pythonapi.PyByteArray_FromStringAndSize
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
    return make
