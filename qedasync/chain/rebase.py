"""Rebase: another backing file under an image that goes on reading the same.

Where the image itself has nothing, what shows through is compared, cluster by cluster, with what
the new backing file would show. Clusters that differ get their content for good, unless a guest is
faster. When all of that is durable, and only then, the header gets the new name. Whichever name a
crash leaves in it, the image reads the same.

A flatten is a rebase to nothing: what is not zeroes differs.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Iterator

from qedasync.chain.name import plan_name, write_name
from qedasync.chain.walk import Progress, View, is_own, piece_size, tasks_for, work_through
from qedasync.engine.core import Engine
from qedasync.engine.source import Source
from qedasync.errors import RequestError
from qedasync.storage.base import ZERO_CHUNK

__all__ = ["rebase"]

_Piece = tuple[int, int]  # [start, stop) of guest bytes: whole clusters, or up to the image's end


async def rebase(
    engine: Engine,
    name: str | None,
    source: Source | None,
    *,
    is_raw: bool = False,
    progress: Progress,
    tasks: int = 8,
) -> None:
    """Put an open image on the backing file ``source``, under the name ``name``.

    Args:
        source: what is below from then on; None for nothing. Owned by the engine once the image
            stands on it; on an error it stays the caller's.
        is_raw: whether to record that it is raw.
        tasks: pieces compared at a time.

    Raises:
        RequestError: the name cannot be recorded, or the image was opened without the backing file
            that it names.
        QEDError: reading or writing failed; the image stands where it stood and is as sound.

    Cancellation: leaves the image where it stands, or on the new file once the header is being
    written. Clusters that were brought over stay; they read as before.
    """
    engine.check_writable()
    async with engine.job:
        _check(engine, name, is_raw)
        if source is None and name is None and engine.backing is None:
            return
        await _Rebase(engine, name, source, is_raw, progress, tasks).run()


def _check(engine: Engine, name: str | None, is_raw: bool) -> None:
    plan_name(engine.header, name, is_raw)
    if engine.backing is None and engine.backing_name is not None:
        raise RequestError(
            f"The image was opened without its backing file {engine.backing_name!r}, so nobody"
            " here knows what shows through; open it with the backing file",
            errno=errno.EINVAL,
        )


class _Rebase:
    def __init__(
        self,
        engine: Engine,
        name: str | None,
        source: Source | None,
        is_raw: bool,
        progress: Progress,
        tasks: int,
    ) -> None:
        self._engine = engine
        self._name = name
        self._source = source
        self._is_raw = is_raw
        self._progress = progress
        self._tasks = tasks_for(engine.geometry, tasks)
        self._view = View(engine, deep=True)
        self._old: Source | None = None

    async def run(self) -> None:
        engine, covered = self._engine, 0
        while True:
            size = engine.image_size
            pieces = self._pieces(engine.geometry.start_of_cluster(covered), size)
            await work_through(pieces, self._bring_over, self._tasks)
            covered = size
            await engine.flush()  # most of it, before everybody has to wait
            async with engine.exclusive():
                if engine.image_size == covered:  # else it has grown
                    await engine.tasks.run(self._switch(), "rebase")
                    break
        self._progress.at(covered, covered)
        if self._old is not None:
            await engine.tasks.run(self._old.close(), "close a backing file")

    async def _switch(self) -> None:
        """The image is ours alone; from the flush on no entry is written before the switch."""
        engine = self._engine
        engine.check_writable()
        await engine.sync()
        await write_name(engine, self._name, self._is_raw)
        self._old = engine.backing
        engine.attach(self._source)
        engine.backing_name = self._name

    # ------------------------------------------------------------ what to compare

    async def _pieces(self, start: int, stop: int) -> AsyncGenerator[_Piece, None]:
        """What is not the image's own and not known to be zeroes in both."""
        geometry, step = self._engine.geometry, piece_size(self._engine.geometry)
        next_pos = start
        async for run in self._view.runs(start, stop):
            self._progress.at(run.start, stop)
            if is_own(run):
                continue
            async for first, last in self._suspects(run.start, run.end, zero=run.zero):
                pos = max(geometry.start_of_cluster(first), next_pos)
                next_pos = max(min(geometry.round_up(last), stop), pos)
                for at in range(pos, next_pos, step):
                    yield at, min(at + step, next_pos)

    async def _suspects(
        self, start: int, stop: int, *, zero: bool
    ) -> AsyncGenerator[tuple[int, int], None]:
        """Of a run that shows through, the parts where the new backing file may differ."""
        if not zero:
            yield start, stop
            return
        source = self._source
        while source is not None and start < (inside := min(stop, source.size)):
            for run in await source.block_status(start, inside - start):
                if not run.zero:
                    yield run.start, run.end
                start = run.end

    # -------------------------------------------------------------- what to bring

    async def _bring_over(self, piece: _Piece) -> None:
        start, stop = piece
        old = bytearray(stop - start)
        await self._view.read_into(old, start)
        new = await self._read_new(start, stop - start)
        if old == new:
            return
        for first, last, zero in self._differing(old, new, start):
            part = None if zero else [memoryview(old)[first - start : last - start]]
            await self._engine.populate(first, last - first, part)

    async def _read_new(self, pos: int, length: int) -> bytearray:
        """What the new backing file has, zeroes past its end."""
        data, source = bytearray(length), self._source
        inside = min(source.size - pos, length) if source is not None else 0
        if source is not None and inside > 0:
            view = memoryview(data)[:inside]
            if not source.try_read_into([view], pos):
                await source.read_into([view], pos)
        return data

    def _differing(
        self, old: bytearray, new: bytearray, pos: int
    ) -> Iterator[tuple[int, int, bool]]:
        """Runs of clusters that differ: start, stop, whether they are zeroes; each in one slice."""
        geometry = self._engine.geometry
        size, shift = geometry.cluster_size, geometry.slice_shift
        run: tuple[int, int, bool] | None = None
        for at in range(0, len(old), size):
            part, start = old[at : at + size], pos + at
            if part == new[at : at + size]:
                continue
            stop, zero = start + len(part), _is_zero(part)
            if run is not None and run[1:] == (start, zero) and run[0] >> shift == start >> shift:
                run = (run[0], stop, zero)
                continue
            if run is not None:
                yield run
            run = (start, stop, zero)
        if run is not None:
            yield run


def _is_zero(data: bytearray) -> bool:
    step = len(ZERO_CHUNK)
    return all(
        data[at : at + step] == ZERO_CHUNK[: len(data) - at] for at in range(0, len(data), step)
    )
