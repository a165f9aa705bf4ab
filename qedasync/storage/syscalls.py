"""System calls that the C library has no function for; pointers are plain numbers."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from functools import lru_cache

__all__ = ["Memory", "SystemCall", "system_call"]

SystemCall = Callable[..., int]
"""``call(number, *arguments)``: the kernel's answer; an error is raised as ``OSError``."""

_ARGUMENTS = 6


@lru_cache(maxsize=1)
def system_call() -> SystemCall | None:
    """Makes any system call of a 64-bit Linux; None on another host."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = (ctypes.c_long,) * (1 + _ARGUMENTS)
    rest = [(0,) * (_ARGUMENTS - given) for given in range(_ARGUMENTS + 1)]

    def call(number: int, *arguments: int) -> int:
        answer: int = syscall(number, *arguments, *rest[len(arguments)])
        if answer < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return answer

    return call


class Memory:
    """Memory that begins on a page, for the kernel to use; zeroed, unless it is a file's.

    Args:
        length: bytes.
        fd, offset: map this, shared, instead of memory of our own.

    Attributes:
        view: the memory; it lives as long as this, or a view of it.
        address: where it begins.

    Raises:
        OSError: the file cannot be mapped.
    """

    def __init__(self, length: int, fd: int = -1, offset: int = 0) -> None:
        self._map = mmap.mmap(fd, length, offset=offset)
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
