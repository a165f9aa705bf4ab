"""What a power loss may leave of a file, computed from a recorder's log. Pure.

At a cut of the log the file's *durable* changes are those that had ended, without failing, before
the begin of the last flush that had returned. Every other change that had begun is *optional*: it
is on the disk, or not, or some of its sectors are; truncates too. Where two changes overlap, the
one that ended later is on top, and one that was still under way at the cut is above both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from random import Random
from typing import Generic, TypeVar

from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.recorder import Change, FlushRecord, Mark, Record

__all__ = ["CrashPoint", "CrashState", "crash_points", "crash_states"]

R = TypeVar("R", bound=Record)

_WHOLE: Mapping[int, int] = {}


@dataclass(slots=True, frozen=True, eq=False)
class CrashPoint:
    """One moment at which the power may go.

    Attributes:
        cut: the time; what began at or after it never happened.
        optional: the changes that may or may not be on the disk.
        marks: the test's marks up to here, in order.
    """

    cut: int
    optional: tuple[Change, ...]
    marks: tuple[Mark, ...]
    _settled: SparseBytes = field(repr=False)
    # What comes on top, in order: None means durable, else it is the number among the optional.
    _rest: tuple[tuple[Change, int | None], ...] = field(repr=False)

    @property
    def durable(self) -> SparseBytes:
        """The file if nothing optional reached the disk."""
        return self.content(())

    def content(self, chosen: Collection[int], torn: Mapping[int, int] = _WHOLE) -> SparseBytes:
        """The file if of ``optional`` only the numbers in ``chosen`` reached the disk.

        Args:
            torn: for some of the chosen numbers a mask of the sectors that did, bit 0 is the first.
        """
        content = self._settled.copy()
        for change, number in self._rest:
            if number is None:
                change.apply(content)
            elif number in chosen:
                change.apply(content, torn.get(number))
        return content

    def state(self, chosen: Iterable[int], torn: Mapping[int, int] = _WHOLE) -> CrashState:
        """A state of one's own choice; see :meth:`content`."""
        return CrashState(self, frozenset(chosen), torn)

    def random_state(self, rng: Random) -> CrashState:
        """Few, half, most or all of the optional changes, a quarter of them torn."""
        share = rng.choice((0.1, 0.5, 0.9, 1.0))
        chosen = [number for number in range(len(self.optional)) if rng.random() < share]
        torn = {}
        for number in chosen:
            sectors = self.optional[number].sectors
            if sectors > 1 and rng.random() < 0.25:
                torn[number] = rng.getrandbits(sectors)
        return CrashState(self, frozenset(chosen), torn)


@dataclass(slots=True, frozen=True, eq=False)
class CrashState:
    """One thing that a power loss may leave; its ``repr`` says which, to make it again.

    Attributes:
        point: when it happened.
        chosen: numbers of the optional changes that reached the disk.
        torn: for some of them a mask of the sectors that did.
    """

    point: CrashPoint
    chosen: frozenset[int]
    torn: Mapping[int, int]

    def content(self) -> SparseBytes:
        """The file."""
        return self.point.content(self.chosen, self.torn)

    def storage(self, *, inline: bool = True) -> MemoryStorage:
        """A storage that begins with this state."""
        return MemoryStorage(self.content(), inline=inline)

    def __repr__(self) -> str:
        torn = {number: bin(mask) for number, mask in self.torn.items()}
        return (
            f"<CrashState cut={self.point.cut} chosen={sorted(self.chosen)}"
            f" of {len(self.point.optional)} torn={torn}>"
        )


def crash_states(point: CrashPoint, rng: Random, count: int) -> Iterator[CrashState]:
    """Nothing optional, everything, then ``count - 2`` by chance; fewer if there is no choice."""
    everything = range(len(point.optional))
    yield from [point.state(()), point.state(everything)][: min(count, 1 + bool(everything))]
    if everything:
        for _ in range(count - 2):
            yield point.random_state(rng)


def crash_points(
    log: Sequence[Record], base: bytes | SparseBytes, cuts: Iterable[int] | None = None
) -> Iterator[CrashPoint]:
    """Walk through a log, a crash point for each cut.

    Args:
        log: of a recorder; nothing may be added meanwhile.
        base: the recorder's; it is not changed.
        cuts: times in ascending order; all of the log's if None.
    """
    replay = _Replay(log, base)
    for cut in range(_last_time(log) + 2) if cuts is None else cuts:
        yield replay.point(cut)


def _last_time(log: Sequence[Record]) -> int:
    return max((record.begin if record.end is None else record.end for record in log), default=-1)


class _Queue(Generic[R]):
    """Things with a time, handed out as time goes by."""

    def __init__(self, items: Iterable[tuple[int, R]]) -> None:
        self._items = deque(sorted(items, key=itemgetter(0)))

    def until(self, cut: int) -> list[R]:
        """All that come before ``cut`` and were not handed out yet."""
        found = []
        while self._items and self._items[0][0] < cut:
            found.append(self._items.popleft()[1])
        return found


class _Replay:
    """The log at a cut that only moves forward."""

    def __init__(self, log: Sequence[Record], base: bytes | SparseBytes) -> None:
        self._settled = base.copy() if isinstance(base, SparseBytes) else SparseBytes(base)
        changes = [record for record in log if isinstance(record, Change)]
        flushes = [record for record in log if isinstance(record, FlushRecord)]
        self._to_begin = _Queue((change.begin, change) for change in changes)
        self._to_end = _Queue((c.end, c) for c in changes if c.end is not None)
        self._to_flush = _Queue((f.end, f) for f in flushes if f.end is not None and not f.failed)
        self._to_mark = _Queue((r.begin, r) for r in log if isinstance(r, Mark))
        self._flushed = 0  # what ended before this time is durable
        self._under_way: list[Change] = []
        self._ended: list[Change] = []  # in the order of their end; the settled ones are gone
        self._marks: tuple[Mark, ...] = ()

    def point(self, cut: int) -> CrashPoint:
        """Move on to ``cut``."""
        self._under_way += self._to_begin.until(cut)
        self._ended += self._to_end.until(cut)
        self._under_way = [change for change in self._under_way if not change.ended_before(cut)]
        for flush in self._to_flush.until(cut):
            self._flushed = max(self._flushed, flush.begin)
        if marks := self._to_mark.until(cut):
            self._marks += tuple(marks)
        self._settle()
        return self._split(cut)

    def _settle(self) -> None:
        """Apply what is durable for good, up to the first change whose outcome is unknown."""
        count = 0
        for change in self._ended:
            if not self._is_durable(change):
                break
            change.apply(self._settled)
            count += 1
        del self._ended[:count]

    def _split(self, cut: int) -> CrashPoint:
        optional: list[Change] = []
        rest: list[tuple[Change, int | None]] = []
        for change in (*self._ended, *self._under_way):
            if self._is_durable(change):
                rest.append((change, None))
            else:
                rest.append((change, len(optional)))
                optional.append(change)
        return CrashPoint(cut, tuple(optional), self._marks, self._settled.copy(), tuple(rest))

    def _is_durable(self, change: Change) -> bool:
        return not change.failed and change.ended_before(self._flushed)
