"""The crash tests would notice: engines with one step left out fail them, and the promise is right.

Each mutant swallows one kind of flush. If none of its states failed, either the flush is not needed
or the tests are blind.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

import qedasync
from qedasync.storage.crash import crash_points
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import RecorderStorage
from tests.crash.journal import Change, Journal, Span
from tests.crash.mutants import MUTANTS
from tests.crash.recovery import CrashFailure, Tally, explore, recover
from tests.crash.scenarios import perform
from tests.crash.stage import Stage, empty_image

SEEDS = 6


@pytest.mark.parametrize("name", MUTANTS)
def test_crash_states_of_an_engine_without_a_step_fail(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]

    async def search() -> None:
        for seed in range(SEEDS):
            recording = await perform(mutant.play, Stage(tmp_path, seed, mutant.wrap))
            await explore(recording, Random(seed), 600, Tally())

    with pytest.raises(CrashFailure, match=mutant.symptom):
        asyncio.run(search(), debug=False)


def journal_of(size: int = 1024, initial: bytes = b"") -> Journal:
    return Journal(RecorderStorage(MemoryStorage()), initial, size)


def change(begin: int, end: int, value: int, pos: int = 0, length: int = 512) -> Change:
    return Change(begin, end, pos=pos, data=bytes([value]) * length)


def allowed_at(journal: Journal, cut: int, pos: int = 0) -> set[int]:
    """The first byte of every value allowed for the atom at ``pos``."""
    promise = journal.promise(cut)
    sure = {data[pos - start] for start, data in promise.sure if start <= pos < start + len(data)}
    loose = {value[0] for start, _, values in promise.loose if start == pos for value in values}
    return sure | loose


def test_promise_before_any_write_is_the_initial_content() -> None:
    journal = journal_of(initial=b"\x09" * 512)
    journal.changes = [change(5, 6, 1)]
    assert allowed_at(journal, 5) == {9}
    assert allowed_at(journal, 5, 512) == {0}


def test_promise_for_an_unflushed_write_is_old_or_new() -> None:
    journal = journal_of()
    journal.changes = [change(1, 2, 1), change(3, 9, 2)]
    assert allowed_at(journal, 4) == {0, 1, 2}


def test_promise_for_a_flushed_write_is_new() -> None:
    journal = journal_of()
    journal.changes = [change(1, 2, 1), change(3, 4, 2)]
    journal.flushes = [Span(5, 8)]
    assert allowed_at(journal, 8) == {0, 1, 2}, "the flush has not returned"
    assert allowed_at(journal, 9) == {2}


def test_promise_for_a_write_that_ended_after_the_flush_began_is_open() -> None:
    journal = journal_of()
    journal.changes = [change(1, 5, 1)]
    journal.flushes = [Span(4, 6)]
    assert allowed_at(journal, 7) == {0, 1}


def test_promise_for_overlapping_flushed_writes_in_flight_is_either() -> None:
    journal = journal_of()
    journal.changes = [change(1, 4, 1), change(2, 3, 2)]
    journal.flushes = [Span(5, 6)]
    assert allowed_at(journal, 7) == {1, 2}


def test_promise_for_a_flush_that_failed_is_open() -> None:
    journal = journal_of()
    journal.changes = [change(1, 2, 1)]
    journal.flushes = [Span(3)]
    assert allowed_at(journal, 9) == {0, 1}


def test_promise_for_a_writethrough_write_holds_on_return() -> None:
    journal = journal_of()
    journal.changes = [change(1, 4, 1)]
    journal.changes[0].safe_at_end = True
    assert allowed_at(journal, 4) == {0, 1}
    assert allowed_at(journal, 5) == {1}


def test_promise_for_a_discard_is_zeroes_or_what_was_there() -> None:
    journal = journal_of()
    journal.changes = [change(1, 2, 1), change(3, 4, 0)]
    journal.changes[1].replaces = False
    journal.flushes = [Span(5, 6)]
    assert allowed_at(journal, 7) == {0, 1}


def test_promise_of_a_size_holds_when_the_growing_has_returned() -> None:
    journal = journal_of()
    journal.resizes = [(Span(1, 4), 2048)]
    assert [journal.promise(cut).sizes for cut in (1, 4, 5)] == [
        frozenset({1024}),
        frozenset({1024, 2048}),
        frozenset({2048}),
    ]


def test_promise_mixture_inside_an_atom_is_broken() -> None:
    journal = journal_of()
    journal.changes = [change(1, 2, 1)]
    promise = journal.promise(3)
    assert promise.broken(0, b"\1" * 512 + bytes(512)) is None
    assert promise.broken(0, b"\1" * 256 + bytes(768)) is not None
    assert promise.broken(0, bytes(1023) + b"\1") is not None


async def test_recover_lost_flushed_write_fails(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 1)
    disk = await stage.open(empty_image(8192), b"", 8192)
    await stage.journal.write(disk, stage.rng, 0, 1024)
    await stage.journal.flush(disk)
    end = stage.journal.recorder.position
    await disk.close()
    recording = stage.recording()
    (point,) = crash_points(recording.log, recording.base, [end])
    await recover(recording, point.durable, recording.journal.promise(end))
    with pytest.raises(CrashFailure, match="lost what was promised"):
        await recover(recording, recording.base, recording.journal.promise(end))


async def test_recover_unmarked_corruption_fails(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 1)
    disk = await stage.open(empty_image(8192), b"", 8192)
    await stage.journal.write(disk, stage.rng, 0, 1024)
    await disk.close()
    recording = stage.recording()
    promise = recording.journal.promise(0)
    storage = MemoryStorage(recording.journal.recorder.base.copy())
    async with qedasync.open(stage.path, "r+", storage=storage) as clean:
        await clean.pwrite(b"x", 0)
    wreck = storage.content
    wreck.resize(wreck.size - 4096 * 3)  # the entries point past the end now
    with pytest.raises(CrashFailure):
        await recover(recording, wreck, promise)
