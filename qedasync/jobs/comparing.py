"""compare: do two disks read the same?"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from qedasync import Disk, Extent, QEDError
from qedasync.jobs import zeroes
from qedasync.jobs.buffers import new_buffer
from qedasync.jobs.lending import lent
from qedasync.jobs.pairs import Pair, Pairs
from qedasync.jobs.probing import Format, opened
from qedasync.jobs.runs import runs_from

if TYPE_CHECKING:
    from qedasync.jobs.crew import Crew

__all__ = ["CompareResult", "compare"]

_PIECE = 256 << 10  # two of them fit in a processor's cache
_SECTOR = 512
_BATCH = 4096  # pieces that are gathered for the threads

_Different = tuple[int, Literal["content", "allocation"]]


class CompareResult(NamedTuple):
    """What a comparison found.

    Attributes:
        identical: they read the same; a longer one may have zeroes at its end, unless strict.
        offset: the first byte that differs, or None.
        reason: ``""``, ``"content"``, ``"size"`` or, if strict, ``"allocation"``.
        size_mismatch: one is longer.
    """

    identical: bool
    offset: int | None = None
    reason: Literal["", "content", "size", "allocation"] = ""
    size_mismatch: bool = False


class Unreadable(QEDError):
    """A disk could not be read, or its map not be had.

    Attributes:
        which: 0 for the first disk, 1 for the second.
        offset: where.
        mapping: it was the map.
    """

    def __init__(self, which: int, offset: int, mapping: bool, cause: QEDError) -> None:
        super().__init__(str(cause))
        self.which, self.offset, self.mapping = which, offset, mapping
        self.errno = getattr(cause, "errno", None)


async def compare(
    first: Disk | str | os.PathLike[str],
    second: Disk | str | os.PathLike[str],
    *,
    first_format: Format | None = None,
    second_format: Format | None = None,
    strict: bool = False,
    backing: Literal["auto", "any"] | bool = "auto",
    progress: Callable[[int, int], None] | None = None,
    tasks: int = 8,
) -> CompareResult:
    """Compare two disks, backing files included.

    Args:
        first, second: files, or open disks, which stay open.
        first_format, second_format: ``"qed"`` or ``"raw"``; None looks at the file.
        strict: sizes and allocation have to be the same too.
        backing: policy for their backing files.
        progress: called with (done, total) bytes.
        tasks: pieces that are compared at a time.

    Raises:
        Unreadable: a part of one of them cannot be read. QEDError: one cannot be opened.
    """
    async with (
        opened(first, first_format, backing) as one,
        opened(second, second_format, backing) as two,
    ):
        return await _Comparison(one, two, strict, progress, tasks).run()


class _Comparison:
    def __init__(
        self,
        one: Disk,
        two: Disk,
        strict: bool,
        progress: Callable[[int, int], None] | None,
        tasks: int,
    ) -> None:
        self._disks = (one, two)
        self._strict = strict
        self._progress = progress
        self._tasks = tasks
        self._common = min(one.size, two.size)
        self._total = max(one.size, two.size)

    @cached_property
    def _buffers(self) -> tuple[bytearray, bytearray]:
        """For a whole piece of each disk."""
        return new_buffer(_PIECE), new_buffer(_PIECE)

    async def run(self) -> CompareResult:
        one, two = self._disks
        mismatch = one.size != two.size
        if mismatch and self._strict:
            return CompareResult(False, None, "size", True)
        self._tell(0)
        different = await self._common_part()
        if different is not None:
            return CompareResult(False, different[0], different[1], mismatch)
        if mismatch:
            offset = await self._rest()
            if offset is not None:
                return CompareResult(False, offset, "content", True)
        self._tell(self._total)
        return CompareResult(True, None, "", mismatch)

    async def _common_part(self) -> _Different | None:
        """Where and how the first bytes of both differ, as many as the shorter one has."""
        async with AsyncExitStack() as stack:
            files = (await lent(stack, self._disks[0]), await lent(stack, self._disks[1]))
            maps = [
                await stack.enter_async_context(aclosing(_Map(self._disks[which], which, 0)))
                for which in (0, 1)
            ]
            pairs = Pairs(files[0], files[1], _PIECE)
            crew = None if files == (None, None) else stack.enter_context(self._crew(pairs))
            batch: list[Pair] = []
            pos = 0
            while pos < self._common:
                runs = (await maps[0].at(pos), await maps[1].at(pos))
                stop = min(runs[0].end, runs[1].end, self._common)
                if self._differs_at_sight(runs) or not pairs.can_read(runs):
                    different = await self._work_off(crew, batch)
                    if different is None:
                        different = await self._range(pos, stop, runs)
                    if different is not None:
                        return different
                for pair in pairs.cut(pos, stop, runs):
                    batch.append(pair)
                    if len(batch) >= _BATCH:
                        different = await self._work_off(crew, batch)
                        if different is not None:
                            return different
                pos = stop
            return await self._work_off(crew, batch)

    def _crew(self, pairs: Pairs) -> Crew[Pair]:
        from qedasync.jobs.crew import Crew  # late: it comes with asyncio

        return Crew(pairs.compare, self._tasks)

    async def _work_off(self, crew: Crew[Pair] | None, batch: list[Pair]) -> _Different | None:
        """Compare what has been gathered; what is unequal or unreadable is looked at again.

        Args:
            crew: None if neither disk has lent its file: then nothing is gathered.
        """
        pairs, batch[:] = [*batch], []
        if not pairs or crew is None:
            return None

        def tick(left: int) -> None:
            self._tell(pairs[len(pairs) - left - 1].start if left < len(pairs) else pairs[0].start)

        for pair in sorted(await crew.do(pairs, tick), key=lambda pair: pair.start):
            different = await self._range(pair.start, pair.start + pair.length, pair.runs)
            if different is not None:
                return different
        return None

    def _differs_at_sight(self, runs: tuple[Extent, Extent]) -> bool:
        """Whether they are not allocated alike, and that matters."""
        allocated = [run.kind not in ("unallocated", "backing") or run.depth > 0 for run in runs]
        return self._strict and allocated[0] != allocated[1]

    async def _range(self, pos: int, stop: int, runs: tuple[Extent, Extent]) -> _Different | None:
        """Where and how the range differs; both disks have one run there."""
        if self._differs_at_sight(runs):
            return pos, "allocation"
        if runs[0].zero and runs[1].zero:
            self._tell(stop)
            return None
        for start in range(pos, stop, _PIECE):
            length = min(_PIECE, stop - start)
            parts = [
                None if runs[which].zero else await self._read(which, length, start)
                for which in (0, 1)
            ]
            at = _difference(parts[0], parts[1])
            if at is not None:
                return start + at, "content"
            self._tell(start + length)
        return None

    async def _rest(self) -> int | None:
        """Where the longer one has something that is not zero, behind the end of the other."""
        which = 0 if self._disks[0].size > self._common else 1
        pos = self._common
        async with aclosing(_Map(self._disks[which], which, self._common)) as rest:
            while pos < self._total:
                run = await rest.at(pos)
                for start in range(pos, run.end, _PIECE) if not run.zero else ():
                    data = await self._read(which, min(_PIECE, run.end - start), start)
                    at = _difference(data, None)
                    if at is not None:
                        return start + at
                    self._tell(start + len(data))
                pos = run.end
        return None

    async def _read(self, which: int, length: int, offset: int) -> bytearray:
        """The bytes, in the one buffer that this disk has, or a new one for less than that."""
        buffer = self._buffers[which] if length == _PIECE else bytearray(length)
        try:
            await self._disks[which].readinto(buffer, offset)
            return buffer
        except QEDError as error:
            raise Unreadable(which, offset, False, error) from error

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)


class _Map:
    """The runs of one disk, asked for one after the other; close it."""

    def __init__(self, disk: Disk, which: int, start: int) -> None:
        self._which = which
        self._pos = start
        self._runs = runs_from(disk, start)
        self._run: Extent | None = None

    async def at(self, pos: int) -> Extent:
        """The run that holds ``pos``, which never goes back."""
        while self._run is None or self._run.end <= pos:
            try:
                self._run = await anext(self._runs)
            except QEDError as error:
                raise Unreadable(self._which, self._pos, True, error) from error
            self._pos = self._run.end
        return self._run

    async def aclose(self) -> None:
        await self._runs.aclose()


def _difference(one: bytearray | None, two: bytearray | None) -> int | None:
    """The first byte that differs; None stands for zeroes."""
    if one is None or two is None:
        data = one if two is None else two
        if data is None or zeroes.is_zero(data):
            return None
        one, two = data, bytearray(len(data))
    elif one == two:
        return None
    for start in range(0, len(one), _SECTOR):
        a, b = one[start : start + _SECTOR], two[start : start + _SECTOR]
        if a != b:
            return start + next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    return None
