"""Who is inside, and who waits outside."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.engine.gate import Gate
from tests.engine.harness import turns


async def test_close_with_nobody_inside_shuts_at_once() -> None:
    gate = Gate()
    await gate.close()
    assert gate.shut


async def test_close_waits_for_the_last_to_leave() -> None:
    gate = Gate()
    gate.inside += 2
    closing = asyncio.create_task(gate.close())
    await turns()
    gate.leave()
    await turns()
    assert gate.shut
    assert not closing.done()
    gate.leave()
    await closing


async def test_opened_waits_until_open_lets_all_in() -> None:
    gate = Gate()
    await gate.close()
    waiting = [asyncio.create_task(gate.opened()) for _ in range(3)]
    await turns()
    assert not any(task.done() for task in waiting)
    gate.open()
    await asyncio.gather(*waiting)


async def test_opened_after_the_door_shut_again_goes_on_waiting() -> None:
    gate = Gate()
    await gate.close()
    waiting = asyncio.create_task(gate.opened())
    await turns()
    gate.open()
    await gate.close()  # before the waiter had its turn
    await turns()
    assert not waiting.done()
    gate.open()
    await waiting


async def test_opened_cancelled_does_not_hold_up_others() -> None:
    gate = Gate()
    await gate.close()
    first, second = (asyncio.create_task(gate.opened()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    gate.open()
    await second
    assert first.cancelled()


async def test_close_cancelled_runs_to_the_end_and_stays_shut() -> None:
    gate = Gate()
    gate.inside += 1
    closing = asyncio.create_task(gate.close())
    await turns()
    closing.cancel()
    await turns()
    assert not closing.done()
    gate.leave()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert gate.shut
