"""The storage that misbehaves: each action, and how rules choose their calls."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.base import Write
from qedasync.storage.faults import (
    Action,
    Call,
    Fault,
    FaultStorage,
    Op,
    sector_count,
    sector_range,
)
from qedasync.storage.memory import MemoryStorage


def over(
    initial: bytes = b"", *faults: Fault, inline: bool = True
) -> tuple[FaultStorage, MemoryStorage]:
    inner = MemoryStorage(initial, inline=inline)
    return FaultStorage(inner, *faults), inner


OPS: dict[Op, Callable[[FaultStorage], Awaitable[object]]] = {
    "read": lambda storage: storage.read_into([bytearray(4)], 8),
    "write": lambda storage: storage.write([b"abcd"], 8),
    "write_zeroes": lambda storage: storage.write_zeroes(8, 4),
    "flush": lambda storage: storage.flush(),
    "truncate": lambda storage: storage.truncate(8),
    "next_data": lambda storage: storage.next_data(8),
    "close": lambda storage: storage.close(),
}


@pytest.mark.parametrize("op", OPS)
async def test_error_on_any_operation_raises_and_does_nothing(op: Op) -> None:
    storage, inner = over(b"." * 20, Fault("error", op=op, errno=errno.ENOSPC))
    with pytest.raises(StorageError) as caught:
        await OPS[op](storage)
    assert caught.value.errno == errno.ENOSPC
    if op in ("read", "write", "write_zeroes"):
        assert (caught.value.offset, caught.value.length) == (8, 4)
    assert inner.snapshot() == b"." * 20
    await inner.flush()  # not even closed
    await OPS[op](storage)  # once


async def test_error_after_has_written_when_it_raises() -> None:
    storage, inner = over(b"....", Fault("error-after", op="write"))
    with pytest.raises(StorageError) as caught:
        await storage.write([b"ab"], 1)
    assert caught.value.errno == errno.EIO
    assert inner.snapshot() == b".ab."


@pytest.mark.parametrize(
    ("keep", "left"), [(None, b"ab.."), (0, b"...."), (3, b"abc."), (9, b"abcd")]
)
async def test_short_write_leaves_a_prefix(keep: int | None, left: bytes) -> None:
    storage, inner = over(b"....", Fault("short", keep=keep))
    with pytest.raises(StorageError):
        await storage.write([b"a", b"bc", b"d"], 0)
    assert inner.snapshot() == left


async def test_short_read_fills_a_prefix() -> None:
    storage, _ = over(b"abcd", Fault("short", op="read", keep=3))
    buffers = [bytearray(b"__"), bytearray(b"__")]
    with pytest.raises(StorageError):
        await storage.read_into(buffers, 0)
    assert buffers == [b"ab", b"c_"]


async def test_torn_write_leaves_every_other_sector() -> None:
    storage, inner = over(b"." * 2048, Fault("torn"))
    with pytest.raises(StorageError):
        await storage.write([b"x" * 100, b"x" * 1400], 300)
    # Sectors are the disk's: [300, 512) is the first, [512, 1024) the second.
    assert inner.snapshot() == b"." * 300 + b"x" * 212 + b"." * 512 + b"x" * 512 + b"." * 512


async def test_torn_write_keeps_the_sectors_it_is_told_to() -> None:
    storage, inner = over(b"." * 1536, Fault("torn", sectors={1, 7}))
    with pytest.raises(StorageError):
        await storage.write([b"x" * 1536], 0)
    assert inner.snapshot() == b"." * 512 + b"x" * 512 + b"." * 512


async def test_torn_write_zeroes_leaves_the_other_sectors() -> None:
    storage, inner = over(b"." * 1024, Fault("torn"))
    with pytest.raises(StorageError):
        await storage.write_zeroes(0, 1024)
    assert inner.snapshot() == bytes(512) + b"." * 512


async def test_torn_and_short_pass_calls_that_move_nothing() -> None:
    storage, inner = over(b"." * 8, Fault("torn"), Fault("short"))
    await storage.flush()
    await storage.truncate(4)
    assert storage.fired == []
    assert inner.size == 4


async def test_delay_by_turns_waits_that_many() -> None:
    storage, inner = over(b"..", Fault("delay", turns=3))
    task = asyncio.create_task(storage.write([b"x"], 0))
    for _ in range(3):
        await asyncio.sleep(0)
        assert inner.snapshot() == b".."
    await asyncio.sleep(0)
    assert inner.snapshot() == b"x."
    await task


async def test_delay_by_seconds_uses_the_given_sleep() -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    storage = FaultStorage(MemoryStorage(), Fault("delay", seconds=2.5), sleep=sleep)
    await storage.flush()
    assert slept == [2.5]


async def test_pause_holds_the_call_until_resume() -> None:
    storage, inner = over(b"..", Fault("pause", event=Event.L2_UPDATE))
    task = asyncio.create_task(storage.write([b"x"], 0, Event.L2_UPDATE))
    await storage.wait_paused()
    await storage.write([b"y"], 1)  # others pass
    assert inner.snapshot() == b".y"
    storage.resume()
    await task
    assert inner.snapshot() == b"xy"


async def test_pause_of_several_calls_waits_for_all_of_them() -> None:
    storage, inner = over(b"..", Fault("pause", op="write", once=False))
    tasks = [asyncio.create_task(storage.write([b"x"], n)) for n in range(2)]
    await storage.wait_paused(2)
    assert inner.snapshot() == b".."
    storage.resume()
    await asyncio.gather(*tasks)
    assert inner.snapshot() == b"xx"


@pytest.mark.parametrize("action", ["pause", "delay"])
async def test_cancelled_while_held_has_not_started(action: Action) -> None:
    storage, inner = over(b"..", Fault(action, turns=100))
    task = asyncio.create_task(storage.write([b"x"], 0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    storage.resume()
    assert inner.snapshot() == b".."


async def test_cancel_reaches_the_task_at_the_call() -> None:
    tasks: list[asyncio.Task[None]] = []
    storage, inner = over(
        b"...", Fault("cancel", call=2, callback=lambda: tasks[0].cancel()), inline=False
    )

    async def work() -> None:
        for n in range(3):
            await storage.write([b"x"], n)

    tasks.append(asyncio.create_task(work()))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert inner.snapshot() == b"x.."


async def test_call_number_counts_matching_calls_only() -> None:
    storage, _ = over(bytes(9), Fault("error", event=Event.L2_UPDATE, op="write", call=2))
    await storage.write([b"x"], 0, Event.L2_UPDATE)
    await storage.write([b"x"], 0, Event.L1_UPDATE)
    await storage.read_into([bytearray(1)], 0, Event.L2_UPDATE)
    with pytest.raises(StorageError):
        await storage.write([b"x"], 0, Event.L2_UPDATE)


async def test_rule_that_is_not_once_hits_every_later_call() -> None:
    storage, _ = over(bytes(9), Fault("error", op="flush", call=2, once=False))
    await storage.flush()
    for _ in range(3):
        with pytest.raises(StorageError):
            await storage.flush()
    storage.clear()
    await storage.flush()


async def test_equal_rules_are_rules_of_their_own() -> None:
    storage, _ = over(bytes(9), Fault("error", op="flush"))
    storage.add(Fault("error", op="flush", call=2))
    storage.add(Fault("error", op="flush", call=2))
    with pytest.raises(StorageError):
        await storage.flush()
    with pytest.raises(StorageError):
        await storage.flush()
    assert len(storage.fired) == 3
    await storage.flush()


async def test_wait_and_error_on_one_call_both_act() -> None:
    storage, inner = over(b"..", Fault("error"), Fault("pause"))
    task = asyncio.create_task(storage.write([b"x"], 0))
    await storage.wait_paused()
    storage.resume()
    with pytest.raises(StorageError):
        await task
    assert [fault.action for fault in storage.fired] == ["error", "pause"]
    assert inner.snapshot() == b".."


async def test_write_many_is_one_call_for_each_write() -> None:
    storage, inner = over(b"....", Fault("error", event=Event.L2_UPDATE))
    writes = [
        Write(0, [b"a"], 1, Event.WRITE_AIO),
        Write(1, [b"b"], 1, Event.L2_UPDATE),
        Write(2, [b"c"], 1, Event.L1_UPDATE),
    ]
    with pytest.raises(StorageError):
        await storage.write_many(writes, grow_to=6)
    assert inner.snapshot() == b"a...\0\0"
    assert storage.calls == [
        Call("truncate", Event.CLUSTER_ALLOC, 6),
        Call("write", Event.WRITE_AIO, 0, 1),
        Call("write", Event.L2_UPDATE, 1, 1),
    ]


async def test_growth_held_while_the_file_becomes_longer_cuts_nothing() -> None:
    storage, inner = over(b"ab", Fault("pause", event=Event.CLUSTER_ALLOC))
    task = asyncio.create_task(storage.write_many([], grow_to=4))
    await storage.wait_paused()
    await storage.write([b"far"], 6)
    storage.resume()
    await task
    assert inner.snapshot() == b"ab\0\0\0\0far"


async def test_try_read_while_a_rule_could_match_takes_the_other_path() -> None:
    storage, _ = over(b"abcd", Fault("error", event=Event.L2_LOAD))
    buffer = bytearray(4)
    assert storage.try_read_into([buffer], 0, Event.READ_AIO)
    assert not storage.try_read_into([buffer], 0, Event.L2_LOAD)
    with pytest.raises(StorageError):
        await storage.read_into([buffer], 0, Event.L2_LOAD)
    assert storage.try_read_into([buffer], 0, Event.L2_LOAD)
    assert storage.count("read", Event.L2_LOAD) == 2
    assert storage.count("read") == 3


async def test_try_read_not_inline_answers_false_and_counts_nothing() -> None:
    storage = FaultStorage(MemoryStorage(b"abcd"), inline=False)
    assert not storage.try_read_into([bytearray(4)], 0)
    assert storage.calls == []


async def test_calls_and_counts_tell_what_happened() -> None:
    storage, _ = over(b"." * 20)
    for call in OPS.values():
        await call(storage)
    assert [call.op for call in storage.calls] == list(OPS)
    assert storage.calls[1] == Call("write", Event.WRITE_AIO, 8, 4)
    assert storage.count() == len(OPS)
    assert storage.count("write") == storage.count(event=Event.FLUSH_TO_DISK) == 1
    assert storage.count("write", Event.L1_UPDATE) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"action": "error", "call": 0}, {"action": "cancel"}, {"action": "delay", "callback": print}],
)
def test_fault_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="call"):
        Fault(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offset", "length", "count"),
    [(0, 0, 0), (0, 1, 1), (511, 1, 1), (511, 2, 2), (512, 512, 1), (700, 1024, 3)],
)
def test_sectors_of_a_range_cover_it_once(offset: int, length: int, count: int) -> None:
    assert sector_count(offset, length) == count
    ranges = [sector_range(offset, length, n, n + 1) for n in range(count)]
    covered = [byte for start, stop in ranges for byte in range(start, stop)]
    assert covered == list(range(length))
    assert all((offset + start) % 512 == 0 for start, _ in ranges[1:])
