"""Going through an image: its runs, many pieces at once, and how far one has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import TypeVar

from qedasync.engine.core import Engine
from qedasync.engine.extents import Extent, ExtentKind
from qedasync.engine.status import Mapper
from qedasync.format.geometry import Geometry

__all__ = ["Progress", "View", "is_own", "piece_size", "tasks_for", "work_through"]

T = TypeVar("T")

Report = Callable[[int, int], None]

PIECE = 1 << 20
"""Bytes that are read and written at once, if clusters are not larger."""

_MEMORY = 64 << 20


def piece_size(geometry: Geometry) -> int:
    """Bytes of a piece: whole clusters."""
    return max(PIECE, geometry.cluster_size)


def tasks_for(geometry: Geometry, tasks: int) -> int:
    """How many pieces may be in memory at once; clusters may be of 64 MiB."""
    return max(1, min(tasks, _MEMORY // piece_size(geometry)))


def is_own(run: Extent) -> bool:
    """Whether the image itself has it, as data or as zeroes."""
    return run.kind in (ExtentKind.DATA, ExtentKind.ZERO)


class Progress:
    """Tells somebody how far it is, in guest bytes; never backwards.

    Args:
        report: called with (done, total), or None.
    """

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._done = -1

    def at(self, done: int, total: int) -> None:
        """So much is done."""
        if self._report is not None and done > self._done:
            self._done = done
            self._report(done, total)


class View:
    """What an image holds itself: its runs and their bytes, for a job.

    Args:
        deep: runs of the files below it count too.

    Attributes:
        inside: whether the caller has the image to itself (``Engine.exclusive``); else each call
            passes the gate.
    """

    def __init__(self, engine: Engine, *, deep: bool) -> None:
        self.inside = False
        self._engine = engine
        self._mapper = engine.mapper if deep else Mapper(engine.tables, engine.path)

    def _door(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.inside else self._engine.entered()

    async def runs(self, start: int, stop: int) -> AsyncGenerator[Extent, None]:
        """The runs of ``[start, stop)``, looked up a few at a time."""
        while start < stop:
            async with self._door():
                found = await self._mapper.first_runs(start, stop - start)
            for run in found:
                yield run
            start = found[-1].end
            await asyncio.sleep(0)

    async def read_into(self, buffer: bytearray, pos: int) -> None:
        """Guest bytes from ``pos`` on."""
        async with self._door():
            await self._engine.reader.read_into([buffer], pos, len(buffer))


async def work_through(
    pieces: AsyncGenerator[T, None], work: Callable[[T], Awaitable[None]], tasks: int
) -> None:
    """Do ``work`` on every piece, ``tasks`` of them at a time; the first error ends the rest.

    Cancellation: when all work has ended.
    """
    async with aclosing(pieces):
        try:
            async with asyncio.TaskGroup() as group:
                turn = asyncio.Lock()
                for _ in range(tasks):
                    group.create_task(_worker(pieces, turn, work))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


async def _worker(
    pieces: AsyncIterator[T], turn: asyncio.Lock, work: Callable[[T], Awaitable[None]]
) -> None:
    while True:
        async with turn:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
        await work(piece)
