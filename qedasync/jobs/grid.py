"""What an overlay has to hold, in whole clusters: of a cluster that it has, it has all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from qedasync import Extent, ExtentKind

__all__ = ["on_grid"]


async def on_grid(
    runs: AsyncIterator[Extent], size: int, total: int
) -> AsyncGenerator[Extent, None]:
    """The runs as whole clusters that are data, zeroes, or left to the backing file.

    A cluster of several kinds is data: the source is read there, its backing file included.

    Args:
        runs: of a source, without gaps; they begin where a cluster does.
        size: of a cluster of the target, bytes.
        total: size of the source.
    """
    spans: list[tuple[int, int, ExtentKind]] = []
    async for run in runs:
        kind = _kind(run)
        first, last = run.start - run.start % size, run.end - run.end % size
        inner, after = -(-run.start // size) * size, -(-run.end // size) * size
        for start, end in ((first, inner), (inner, last), (last, after)):
            if start < end:
                _add(spans, start, end, kind)
        for span in spans[:-1]:  # the last one may still change
            yield _extent(span, total)
        del spans[:-1]
    for span in spans:
        yield _extent(span, total)


def _extent(span: tuple[int, int, ExtentKind], total: int) -> Extent:
    start, end, kind = span
    return Extent(start, min(end, total) - start, kind, zero=kind is not ExtentKind.DATA)


def _kind(run: Extent) -> ExtentKind:
    if run.kind in (ExtentKind.BACKING, ExtentKind.UNALLOCATED):
        return ExtentKind.BACKING
    return ExtentKind.ZERO if run.zero else ExtentKind.DATA


def _add(spans: list[tuple[int, int, ExtentKind]], start: int, end: int, kind: ExtentKind) -> None:
    """Put a span behind the others, or on the last cluster of the last one."""
    if spans and spans[-1][1] > start:
        before, _, other = spans.pop()
        if before < start:
            spans.append((before, start, other))
        kind = kind if kind is other else ExtentKind.DATA
    spans.append((start, end, kind))
