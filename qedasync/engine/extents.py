"""Runs of an image: what the mapping says about a range of guest bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["Extent", "ExtentKind", "joined", "merge", "slice_extents"]


class ExtentKind(StrEnum):
    """Where a run's bytes come from."""

    DATA = "data"
    """Clusters of this image."""
    ZERO = "zero"
    """Marked as zeroes in this image; the backing file is hidden."""
    UNALLOCATED = "unallocated"
    """In no layer; reads as zeroes."""
    BACKING = "backing"
    """Not in this image: the backing file has it."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of guest bytes of one kind.

    Attributes:
        start, length: guest bytes.
        kind: seen from the image that was asked.
        zero: whether the run is known to read as zeroes.
        depth: 0 for the image itself, 1 for its backing file, 2 for that one's, ...; for what no
            layer has, the lowest that is long enough to be asked.
        offset: where the run lies in ``path``, in bytes, if it lies there as it is read; else None.
        path: the file that has the bytes, or None.
    """

    start: int
    length: int
    kind: ExtentKind
    zero: bool
    depth: int = 0
    offset: int | None = None
    path: str | None = None

    @property
    def end(self) -> int:
        """The guest byte after the run."""
        return self.start + self.length

    def continues(self, before: Extent) -> bool:
        """Whether this run goes on where ``before`` ends, in every respect."""
        return (
            self.start == before.end
            and self.kind is before.kind
            and self.zero == before.zero
            and self.depth == before.depth
            and self.path == before.path
            and (self.offset is None) == (before.offset is None)
            and (self.offset is None or self.offset == (before.offset or 0) + before.length)
        )


def joined(before: Extent, after: Extent) -> Extent:
    """One run of the two."""
    return replace(before, length=before.length + after.length)


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same runs, with those that continue one another joined."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and extent.continues(last):
            last = joined(last, extent)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


class _Draft:
    """An :class:`Extent` in the making, which takes a third of the time.

    A frozen class sets its attributes by a detour. This one has the same slots, so that it can
    become one.
    """

    __slots__ = ("depth", "kind", "length", "offset", "path", "start", "zero")

    def __init__(
        self, start: int, length: int, kind: ExtentKind, zero: bool, offset: int | None, path: str
    ) -> None:
        self.start = start
        self.length = length
        self.kind = kind
        self.zero = zero
        self.depth = 0
        self.offset = offset
        self.path = None if offset is None else path


def slice_extents(
    runs: Iterable[tuple[int, int]], pos: int, end: int, cluster_size: int, path: str
) -> list[Extent]:
    """The extents of runs of L2 entries: up to 512 at once, and they may be a million in all.

    Args:
        runs: the first entry and the number of clusters of each, one after the other.
        pos, end: guest bytes; ``pos`` is in the first of the clusters, and ``end`` cuts the last.
        path: the image file.
    """
    inside = pos & (cluster_size - 1)
    start = pos - inside
    found: list[Extent] = []
    for entry, n in runs:
        length = n * cluster_size
        if entry > 1:
            draft = _Draft(start, length, ExtentKind.DATA, False, entry, path)
        else:
            kind = ExtentKind.ZERO if entry else ExtentKind.UNALLOCATED
            draft = _Draft(start, length, kind, True, None, path)
        draft.__class__ = Extent  # type: ignore[assignment]
        found.append(draft)  # type: ignore[arg-type]
        start += length
    _cut(found, inside, start - end)
    return found


def _cut(found: list[Extent], before: int, after: int) -> None:
    """Take bytes off at both ends."""
    if before:
        first = found[0]
        offset = None if first.offset is None else first.offset + before
        found[0] = replace(
            first, start=first.start + before, length=first.length - before, offset=offset
        )
    if after > 0:
        found[-1] = replace(found[-1], length=found[-1].length - after)
