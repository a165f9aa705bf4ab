"""Crash states: what is durable, what is optional, and what they look like together."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import chain, combinations

import pytest

from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.base import Write
from qedasync.storage.crash import CrashPoint, crash_points, crash_states
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import Change, FlushRecord, Record, RecorderStorage


def point_at(recorder: RecorderStorage, cut: int | None = None) -> CrashPoint:
    cuts = [recorder.position if cut is None else cut]
    return next(crash_points(recorder.log, recorder.base, cuts))


def images(point: CrashPoint) -> set[bytes]:
    """Every image the point allows with whole changes."""
    numbers = range(len(point.optional))
    subsets = chain.from_iterable(combinations(numbers, n) for n in range(len(numbers) + 1))
    return {bytes(point.content(subset)) for subset in subsets}


async def test_unflushed_writes_are_optional_one_by_one() -> None:
    recorder = RecorderStorage(MemoryStorage(b"..."))
    await recorder.write([b"a"], 0)
    await recorder.write([b"b"], 1)
    assert images(point_at(recorder)) == {b"...", b"a..", b".b.", b"ab."}


async def test_flushed_writes_are_durable() -> None:
    recorder = RecorderStorage(MemoryStorage(b"..."))
    await recorder.write([b"a"], 0)
    await recorder.flush()
    await recorder.write([b"b"], 1)
    assert images(point_at(recorder)) == {b"a..", b"ab."}


async def test_flush_under_way_makes_nothing_durable() -> None:
    recorder = RecorderStorage(MemoryStorage(b"..."))
    await recorder.write([b"a"], 0)
    await recorder.flush()
    assert images(point_at(recorder, recorder.position - 1)) == {b"...", b"a.."}
    assert images(point_at(recorder)) == {b"a.."}


async def test_failed_flush_makes_nothing_durable() -> None:
    inner = FaultStorage(MemoryStorage(b"..."), Fault("error", op="flush"))
    recorder = RecorderStorage(inner, b"...")
    await recorder.write([b"a"], 0)
    with pytest.raises(StorageError):
        await recorder.flush()
    assert images(point_at(recorder)) == {b"...", b"a.."}


async def test_write_that_ends_after_the_flush_began_is_optional() -> None:
    recorder = RecorderStorage(MemoryStorage(b"...", inline=False))
    await recorder.write([b"a"], 0)
    await asyncio.gather(recorder.write([b"b"], 1), recorder.flush())
    assert images(point_at(recorder)) == {b"a..", b"ab."}


async def test_write_begun_after_the_cut_never_happened() -> None:
    recorder = RecorderStorage(MemoryStorage(b"..."))
    await recorder.write([b"a"], 0)
    mark = recorder.mark()
    await recorder.write([b"b"], 1)
    assert images(point_at(recorder, mark.begin + 1)) == {b"...", b"a.."}


async def test_write_under_way_at_the_cut_is_optional() -> None:
    recorder = RecorderStorage(MemoryStorage(b"..."))
    await recorder.write([b"a"], 0)
    assert images(point_at(recorder, 0)) == {b"..."}
    assert images(point_at(recorder, 1)) == {b"...", b"a.."}


async def test_later_write_is_on_top_of_an_earlier_one() -> None:
    recorder = RecorderStorage(MemoryStorage(b"."))
    await recorder.write([b"a"], 0)
    await recorder.write([b"b"], 0)
    assert images(point_at(recorder)) == {b".", b"a", b"b"}


async def test_failed_write_stays_optional_but_below_what_came_later() -> None:
    recorder = RecorderStorage(
        FaultStorage(MemoryStorage(b"..."), Fault("error-after", op="write")), b"..."
    )
    with pytest.raises(StorageError):
        await recorder.write([b"xx"], 0)
    await recorder.write([b"b"], 1)
    await recorder.flush()
    assert images(point_at(recorder)) == {b".b.", b"xb."}


async def test_truncates_growth_and_zeroes_are_optional_until_flushed() -> None:
    recorder = RecorderStorage(MemoryStorage(b"abcd"))
    await recorder.truncate(2)
    await recorder.write_zeroes(0, 1)
    assert images(point_at(recorder)) == {b"abcd", b"ab", b"\0bcd", b"\0b"}
    await recorder.flush()
    await recorder.write_many([Write(3, [b"x"], 1, Event.WRITE_AIO)], grow_to=5)
    assert images(point_at(recorder)) == {b"\0b", b"\0b\0\0\0", b"\0b\0x", b"\0b\0x\0"}


async def test_torn_write_has_only_the_sectors_of_its_mask() -> None:
    recorder = RecorderStorage(MemoryStorage(b"." * 3000))
    await recorder.write([b"x" * 2000], 500)  # sectors of 12, 512, 512, 512 and 452 bytes
    point = point_at(recorder)
    assert point.optional[0].sectors == 5
    left = bytes(point.content([0], {0: 0b10110}))
    assert left == b"." * 512 + b"x" * 1024 + b"." * 512 + b"x" * 452 + b"." * 500
    assert bytes(point.content([0], {0: 0})) == b"." * 3000
    assert bytes(point.content([0], {0: 0b11111})) == bytes(point.content([0]))


async def test_torn_zeroes_have_only_the_sectors_of_their_mask() -> None:
    recorder = RecorderStorage(MemoryStorage(b"." * 1536))
    await recorder.write_zeroes(0, 1536)
    left = bytes(point_at(recorder).content([0], {0: 0b101}))
    assert left == bytes(512) + b"." * 512 + bytes(512)


async def test_marks_tell_what_the_test_knew() -> None:
    recorder = RecorderStorage(MemoryStorage())
    first = recorder.mark("first")
    await recorder.flush()
    second = recorder.mark("second")
    assert point_at(recorder, first.begin).marks == ()
    assert point_at(recorder, second.begin).marks == (first,)
    assert point_at(recorder).marks == (first, second)


async def test_points_of_a_log_leave_base_and_each_other_alone() -> None:
    recorder = RecorderStorage(MemoryStorage(b"..."))
    for data in (b"a", b"b", b"c"):
        await recorder.write([data], 0)
        await recorder.flush()
    points = list(crash_points(recorder.log, recorder.base))
    assert len(points) == recorder.position + 1
    for point in points:
        bytes(point.content(range(len(point.optional))))
    assert bytes(points[0].durable) == bytes(recorder.base) == b"..."
    assert bytes(points[-1].durable) == b"c.."


async def test_states_begin_with_nothing_and_everything_and_can_be_made_again() -> None:
    recorder = RecorderStorage(MemoryStorage(b"." * 4096))
    for n in range(4):
        await recorder.write([bytes([65 + n]) * 1024], n * 1024)
    point = point_at(recorder)
    states = list(crash_states(point, random.Random(1), 50))
    assert len(states) == 50
    assert bytes(states[0].content()) == b"." * 4096
    assert bytes(states[1].content()) == (b"A" * 1024 + b"B" * 1024 + b"C" * 1024 + b"D" * 1024)
    assert any(state.torn for state in states)
    for state in states:
        again = point.state(state.chosen, state.torn)
        assert again.storage().snapshot() == bytes(state.content()), state


async def test_states_of_a_point_without_choice_are_one() -> None:
    recorder = RecorderStorage(MemoryStorage(b"."))
    assert len(list(crash_states(point_at(recorder), random.Random(1), 50))) == 1


async def test_state_says_how_to_make_it_again() -> None:
    recorder = RecorderStorage(MemoryStorage(b"." * 1024))
    await recorder.write([b"x" * 1024], 0)
    state = point_at(recorder).state([0], {0: 2})
    assert repr(state) == "<CrashState cut=2 chosen=[0] of 1 torn={0: '0b10'}>"


def slow_point(log: list[Record], cut: int) -> tuple[list[Change], list[Change]]:
    """The durable and the optional changes of a cut, straight from the definition."""
    flushes = [
        record
        for record in log
        if isinstance(record, FlushRecord) and record.ended_before(cut) and not record.failed
    ]
    fence = max((flush.begin for flush in flushes), default=0)
    begun = [record for record in log if isinstance(record, Change) and record.begin < cut]
    durable = [c for c in begun if not c.failed and c.ended_before(fence)]
    return durable, [c for c in begun if c not in durable]


async def random_call(recorder: RecorderStorage, rng: random.Random) -> None:
    offset = rng.randrange(8000)
    match rng.randrange(4):
        case 0:
            await recorder.write([rng.randbytes(700)], offset)
        case 1:
            await recorder.write_zeroes(offset, 600)
        case 2:
            await recorder.truncate(offset + 192)
        case _:
            await recorder.flush()


async def random_log(rng: random.Random) -> RecorderStorage:
    """What three clients did at the same time; some calls were slow, some failed."""
    slow = [Fault("delay", once=False, call=n) for n in (3, 7, 20)]
    inner = FaultStorage(MemoryStorage(bytes(8192)), *slow)
    recorder = RecorderStorage(inner, bytes(8192))

    async def client() -> None:
        for _ in range(12):
            if rng.random() < 0.1:
                inner.add(Fault("error"))
            with suppress(StorageError):
                await random_call(recorder, rng)

    await asyncio.gather(*(client() for _ in range(3)))
    return recorder


@pytest.mark.parametrize("seed", range(5))
async def test_points_match_the_definition_on_a_random_log(seed: int) -> None:
    rng = random.Random(seed)
    recorder = await random_log(rng)
    for cut, point in enumerate(crash_points(recorder.log, recorder.base)):
        durable, optional = slow_point(recorder.log, cut)
        assert set(point.optional) == set(optional), cut
        chosen = [n for n in range(len(optional)) if rng.random() < 0.5]
        picked = durable + [point.optional[n] for n in chosen]
        ended = [change for change in picked if change.ended_before(cut)]
        content = recorder.base.copy()
        for change in sorted(ended, key=lambda change: change.end or 0):
            change.apply(content)
        for change in picked:
            if change not in ended:
                change.apply(content)
        assert bytes(point.content(chosen)) == bytes(content), cut
