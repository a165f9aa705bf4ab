"""Runs of an image: what the mapping says about a range of guest bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["Extent", "ExtentKind", "merge"]


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


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same runs, with those that continue one another joined."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and extent.continues(last):
            last = replace(last, length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
