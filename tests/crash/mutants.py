"""Engines with one step left out, to prove that the crash tests would notice."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from qedasync.events import Event
from qedasync.storage.base import Storage
from qedasync.storage.faults import FaultStorage
from tests.crash.scenarios import (
    Play,
    growing_under_backing,
    mending,
    mixed,
    overlay_on_raw,
    quiet_times,
    repairing,
    unchecked,
)
from tests.crash.stage import Stage

__all__ = ["MUTANTS", "Mutant"]

Deaf = Callable[[AbstractSet[Event | None], bool], bool]
"""Given why the file was changed since the last flush, and whether the user is flushing: swallow
this flush?"""


class DeafStorage(FaultStorage):
    """Says yes to chosen flushes and does nothing."""

    def __init__(self, stage: Stage, inner: Storage, deaf: Deaf) -> None:
        super().__init__(inner)
        self._stage = stage
        self._deaf = deaf

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        changes = {call.event for call in self.calls if call.op not in ("read", "flush")}
        self.calls.clear()
        if not self._deaf(changes, self._stage.journal.flushing > 0):
            await super().flush(event)


@dataclass(slots=True, frozen=True)
class Mutant:
    """What is left out, and the scenario in which it matters.

    Attributes:
        deaf: which flushes do nothing.
        symptom: what its crash states are found to have (a regular expression).
    """

    play: Play
    deaf: Deaf
    symptom: str

    def wrap(self, stage: Stage, recorder: Storage) -> Storage:
        """The storage that the engine is to get."""
        return DeafStorage(stage, recorder, self.deaf)


def _after(*events: Event) -> Deaf:
    """The engine's own flushes that follow one of these."""
    return lambda changes, flushing: not flushing and not changes.isdisjoint(events)


def _not_after(*events: Event) -> Deaf:
    return lambda changes, flushing: not flushing and changes.isdisjoint(events)


LOST = "lost what was promised|none of the"
UNSOUND = "not sound|CorruptTable"

MUTANTS: dict[str, Mutant] = {
    "the user's own flush": Mutant(mixed, lambda changes, flushing: flushing, LOST),
    # Where a group has a new L2 table, the flush before L1 would do; after a quiet time none has.
    "NEED_CHECK before L2": Mutant(quiet_times, _after(Event.HEADER_UPDATE), UNSOUND),
    "everything before NEED_CHECK is cleared": Mutant(
        quiet_times, _not_after(Event.HEADER_UPDATE, Event.L2_ALLOC_WRITE), UNSOUND
    ),
    "an overlay's data before L2": Mutant(
        overlay_on_raw, _after(Event.WRITE_AIO, Event.COW_WRITE), f"{LOST}|{UNSOUND}"
    ),
    "an overlay's new L2 table before L1": Mutant(
        overlay_on_raw, _after(Event.L2_ALLOC_WRITE), f"{LOST}|{UNSOUND}"
    ),
    "zeroes before the new size": Mutant(
        growing_under_backing,
        _after(Event.L2_UPDATE, Event.L2_ALLOC_WRITE, Event.PWRITEV_ZERO),
        LOST,
    ),
    "the cut of a partial cluster": Mutant(unchecked, _after(Event.TRUNCATE), LOST),
    "a repair's copies before it names them": Mutant(mending, _after(Event.CHECK_COPY), LOST),
    "a repair before new writes": Mutant(repairing, _not_after(Event.HEADER_UPDATE), UNSOUND),
}
