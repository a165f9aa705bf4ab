"""The map of a disk as one goes along it: whatever its size, only a piece of it is in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from qedasync import Disk, Extent, ExtentKind, QEDError

__all__ = ["runs_from", "salvaged_runs"]

_STEP = 1 << 30


async def runs_from(disk: Disk, start: int) -> AsyncGenerator[Extent, None]:
    """The runs of a disk from ``start`` on, as they are looked up.

    Raises:
        QEDError: the map cannot be had there.
    """
    runs: Any = disk.extents()
    try:
        async for run in runs:
            if run.start >= start:
                yield run
            elif run.end > start:
                yield _without_head(run, start - run.start)
    finally:
        if hasattr(runs, "aclose"):
            await runs.aclose()


async def salvaged_runs(disk: Disk, start: int) -> AsyncGenerator[Extent, None]:
    """The same, where it can be had; elsewhere there may be data."""
    while start < disk.size:
        length = min(_STEP, disk.size - start)
        try:
            runs = await disk.block_status(start, length)
        except QEDError:
            runs = [Extent(start, length, ExtentKind.DATA, zero=False)]
        for run in runs:
            yield run
        start += length


def _without_head(run: Extent, length: int) -> Extent:
    offset = None if run.offset is None else run.offset + length
    return replace(run, start=run.start + length, length=run.length - length, offset=offset)
