"""What a disk may hold, while requests fail, overlap and are cancelled.

A grain is the unit a model thinks in: requests begin and end at grains, and every byte of a grain
has one value. A write that has not ended well may or may not have reached each of its grains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["GRAIN", "Change", "Model"]

GRAIN = 256

_PATTERNS = [bytes([value]) * GRAIN for value in range(256)]


@dataclass(eq=False)
class Change:
    """A write that has begun.

    Attributes:
        pos, length: the guest bytes.
        value: what every byte of them is to be.
        may_keep: whether a grain may stay as it was even if all goes well (a discard).
        rivals: the writes that were in flight at the same time and overlap this one.
    """

    pos: int
    length: int
    value: int
    may_keep: bool = False
    rivals: list[Change] = field(default_factory=list)

    @property
    def grains(self) -> range:
        return range(self.pos // GRAIN, -(-(self.pos + self.length) // GRAIN))

    def overlaps(self, other: Change) -> bool:
        return self.pos < other.pos + other.length and other.pos < self.pos + self.length


class Model:
    """The values that each grain may have.

    Args:
        initial: the value of a grain nobody wrote, by the grain's guest position.
    """

    def __init__(self, initial: Callable[[int], int] = lambda pos: 0) -> None:
        self._initial = initial
        self._allowed: dict[int, set[int]] = {}
        self._in_flight: list[Change] = []

    def copy(self) -> Model:
        """The same knowledge, to be changed on its own; nothing is in flight."""
        assert not self._in_flight
        twin = Model(self._initial)
        twin._allowed = {grain: set(values) for grain, values in self._allowed.items()}
        return twin

    @property
    def touched(self) -> list[int]:
        """Guest positions of the grains that somebody wrote."""
        return [grain * GRAIN for grain in self._allowed]

    def allowed(self, grain: int) -> set[int]:
        """The values the grain may have."""
        return self._allowed.get(grain) or {self._initial(grain * GRAIN)}

    def begin(self, change: Change) -> None:
        """From now on each grain may have the new value."""
        for other in self._in_flight:
            if other.overlaps(change):
                other.rivals.append(change)
                change.rivals.append(other)
        self._in_flight.append(change)
        for grain in change.grains:
            self._allowed[grain] = self.allowed(grain) | {change.value}

    def succeed(self, change: Change) -> None:
        """From now on no grain has its old value any more."""
        self._in_flight.remove(change)
        if change.may_keep:
            return
        for grain in change.grains:
            rivals = {rival.value for rival in change.rivals if grain in rival.grains}
            self._allowed[grain] = rivals | {change.value}

    def fail(self, change: Change) -> None:
        """Old or new: nobody knows."""
        self._in_flight.remove(change)

    def now(self, pos: int, length: int) -> dict[int, set[int]]:
        """The values that the grains of a range may have at this moment."""
        return {grain: self.allowed(grain) for grain in Change(pos, length, 0).grains}

    def look(
        self,
        pos: int,
        data: bytes | bytearray,
        *,
        before: Mapping[int, set[int]] | None = None,
        settle: bool = False,
    ) -> None:
        """Compare with what was read at ``pos``.

        Args:
            before: what :meth:`now` said when the read began: a write may have ended meanwhile.
            settle: nothing is in flight, so what was seen once has to stay.
        """
        for start in range(0, len(data), GRAIN):
            grain, value = (pos + start) // GRAIN, data[start]
            allowed = self.allowed(grain)
            if before is not None:
                allowed = allowed | before[grain]
            piece = data[start : start + GRAIN]
            uniform = piece == _PATTERNS[value][: len(piece)]
            if not uniform or value not in allowed:
                found, may_be = sorted(set(piece)), sorted(allowed)
                raise AssertionError(f"at {pos + start}: {found} where one of {may_be} may be")
            if settle and len(allowed) > 1:
                self._allowed[grain] = {value}
