"""What an overlay has to hold, in whole clusters: of a cluster that it has, it has all."""

from __future__ import annotations

from collections.abc import Iterable

from qedasync import Extent, ExtentKind

__all__ = ["on_grid"]


def on_grid(runs: Iterable[Extent], size: int, total: int) -> list[Extent]:
    """The runs as whole clusters that are data, zeroes, or left to the backing file.

    A cluster of several kinds is data: the source is read there, its backing file included.

    Args:
        runs: of a source, without gaps; they begin where a cluster does.
        size: of a cluster of the target, bytes.
        total: size of the source.
    """
    spans: list[tuple[int, int, ExtentKind]] = []
    for run in runs:
        kind = _kind(run)
        first, last = run.start - run.start % size, run.end - run.end % size
        inner, after = -(-run.start // size) * size, -(-run.end // size) * size
        for start, end in ((first, inner), (inner, last), (last, after)):
            if start < end:
                _add(spans, start, end, kind)
    return [
        Extent(start, min(end, total) - start, kind, zero=kind is not ExtentKind.DATA)
        for start, end, kind in spans
    ]


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
