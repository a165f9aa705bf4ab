"""The dirty bit: durable before what it covers, gone only after a flush of all that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qedasync.engine.header_file import HeaderFile
from qedasync.engine.need_check import LoopClock, NeedCheck
from qedasync.engine.tasks import TaskOwner
from qedasync.errors import QEDError, StorageError
from qedasync.events import Event
from qedasync.format.header import Header
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.engine.harness import ManualClock, image, turns


class Bit:
    """A bit over a storage that can fail."""

    def __init__(self, need_check: bool = False, quiet: float = 5.0) -> None:
        content = image(need_check=need_check)
        self.memory = MemoryStorage(content)
        self.storage = FaultStorage(self.memory)
        self.clock = ManualClock()
        self.turn = asyncio.Lock()
        self.tasks = TaskOwner("test")
        self.background: list[QEDError] = []
        self.bit = NeedCheck(
            HeaderFile(self.storage, Header.parse(content)),
            self.storage.flush,
            self.turn,
            self.tasks,
            self.clock,
            quiet,
            self.background.append,
        )

    def on_disk(self) -> bool:
        return bool(self.memory.snapshot()[16] & 2)

    @property
    def calls(self) -> list[str]:
        return [call.op for call in self.storage.calls]


@asynccontextmanager
async def made(need_check: bool = False, quiet: float = 5.0) -> AsyncIterator[Bit]:
    bit = Bit(need_check, quiet)
    yield bit
    await bit.bit.stop()
    await bit.tasks.drain()


async def test_set_writes_then_flushes_once() -> None:
    async with made() as m:
        await m.bit.set()
        assert m.on_disk()
        assert m.calls == ["write", "flush"]
        await m.bit.set()
        assert m.calls == ["write", "flush"]


async def test_set_bit_set_at_open_needs_nothing() -> None:
    async with made(need_check=True) as m:
        await m.bit.set()
        assert m.calls == []


async def test_set_failing_write_is_tried_again() -> None:
    async with made() as m:
        m.storage.add(Fault("error", event=Event.HEADER_UPDATE))
        with pytest.raises(StorageError):
            await m.bit.set()
        assert not m.bit.is_set
        await m.bit.set()
        assert m.on_disk()


async def test_set_failing_flush_is_not_durable_and_is_done_again() -> None:
    async with made() as m:
        m.storage.add(Fault("error", op="flush"))
        with pytest.raises(StorageError):
            await m.bit.set()
        await m.bit.set()
        assert m.calls == ["write", "flush", "write", "flush"]


async def test_clear_flushes_before_and_after() -> None:
    async with made(need_check=True) as m:
        await m.bit.clear()
        assert not m.on_disk()
        assert m.calls == ["flush", "write", "flush"]


async def test_clear_failing_flush_keeps_the_bit() -> None:
    async with made(need_check=True) as m:
        m.storage.add(Fault("error", op="flush"))
        with pytest.raises(StorageError):
            await m.bit.clear()
        assert m.on_disk()
        assert m.bit.is_set


async def test_clear_failing_write_may_have_cleared_it_so_set_writes_it_again() -> None:
    async with made(need_check=True) as m:
        m.storage.add(Fault("error-after", event=Event.HEADER_UPDATE))
        with pytest.raises(StorageError):
            await m.bit.clear()
        assert not m.on_disk()
        await m.bit.set()
        assert m.on_disk()


async def test_clear_not_set_or_not_allowed_does_nothing() -> None:
    async with made() as m:
        await m.bit.clear()
        assert m.calls == []
    async with made(need_check=True) as m:
        m.bit.may_clear = False
        await m.bit.clear()
        assert m.calls == []
        assert m.on_disk()


async def test_set_after_clear_is_durable_again() -> None:
    async with made() as m:
        await m.bit.set()
        await m.bit.clear()
        m.storage.calls.clear()
        await m.bit.set()
        assert m.calls == ["write", "flush"]


async def test_timer_quiet_time_over_clears() -> None:
    async with made() as m:
        await m.bit.set()
        m.bit.arm()
        await m.clock.advance(4.9)
        assert m.on_disk()
        await m.clock.advance(0.2)
        assert not m.on_disk()
        assert m.clock.sleeping == 0


async def test_timer_armed_again_begins_anew() -> None:
    async with made() as m:
        await m.bit.set()
        m.bit.arm()
        await m.clock.advance(3)
        m.bit.arm()
        await m.clock.advance(3)
        assert m.on_disk()
        await m.clock.advance(2)
        assert not m.on_disk()


async def test_timer_waits_for_the_turn_and_looks_again() -> None:
    async with made() as m:
        await m.bit.set()
        m.bit.arm()
        async with m.turn:
            await m.clock.advance(6)
            assert m.on_disk()
            m.bit.arm()  # somebody allocated
        await turns()
        assert m.on_disk()
        await m.clock.advance(5)
        assert not m.on_disk()


async def test_timer_holds_the_turn_while_it_flushes() -> None:
    async with made() as m:
        await m.bit.set()
        m.storage.add(Fault("pause", op="flush"))
        m.bit.arm()
        await m.clock.advance(5)
        await m.storage.wait_paused()
        assert m.turn.locked()
        m.storage.resume()
        await turns(10)
        assert not m.turn.locked()
        assert not m.on_disk()


async def test_timer_failing_flush_keeps_the_bit_and_tells() -> None:
    async with made() as m:
        await m.bit.set()
        m.storage.add(Fault("error", op="flush"))
        m.bit.arm()
        await m.clock.advance(5)
        assert m.on_disk()
        assert len(m.background) == 1
        assert isinstance(m.background[0], StorageError)


@pytest.mark.parametrize(("quiet", "is_set"), [(0.0, True), (-1.0, True), (5.0, False)])
async def test_arm_no_timeout_or_no_bit_starts_no_timer(quiet: float, is_set: bool) -> None:
    async with made(need_check=is_set, quiet=quiet) as m:
        m.bit.arm()
        await m.clock.advance(100)
        assert m.calls == []
        assert m.on_disk() == is_set


async def test_stop_ends_the_timer_for_good() -> None:
    async with made() as m:
        await m.bit.set()
        m.bit.arm()
        await turns()
        await m.bit.stop()
        m.bit.arm()
        await m.clock.advance(100)
        assert m.on_disk()


async def test_loop_clock_is_the_loops_time() -> None:
    clock = LoopClock()
    before = clock.time()
    await clock.sleep(0)
    assert clock.time() >= before
