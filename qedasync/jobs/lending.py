"""The host's files behind disks, for threads that read and write them without the event loop."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Protocol

from qedasync import Disk, Extent

__all__ = ["HostFile", "is_direct", "lent"]


class HostFile(Protocol):
    """What ``Image.lent`` and ``RawImage.lent`` give. Its methods block, on any thread."""

    def read_into(self, buffers: list[memoryview], offset: int) -> None: ...

    def write(self, buffers: list[memoryview], offset: int) -> None: ...

    def reserve(self, offset: int, length: int) -> None: ...

    def release(self, offset: int, length: int) -> None: ...


async def lent(stack: AsyncExitStack, disk: Disk, *, writing: bool = False) -> HostFile | None:
    """The disk's file until the stack ends, if it has one to lend.

    Args:
        writing: for writing as well; an image does that itself.
    """
    lender: Any = disk
    if not hasattr(disk, "lent") or (writing and hasattr(disk, "bulk")):
        return None
    context = lender.lent(writing=True) if writing else lender.lent()
    file: HostFile | None = await stack.enter_async_context(context)
    return file


def is_direct(run: Extent) -> bool:
    """Whether the run's bytes lie in the disk's own file as the guest reads them."""
    return run.offset is not None and run.depth == 0
