"""A turn for the loop, which needs none."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.turns import give_turn


async def test_turn_lets_every_other_task_run_once() -> None:
    seen: list[str] = []

    async def other() -> None:
        seen.append("other")

    tasks = [asyncio.create_task(other()) for _ in range(3)]
    await give_turn()
    assert seen == ["other"] * 3
    await asyncio.gather(*tasks)


async def test_turn_of_a_cancelled_task_raises() -> None:
    async def give() -> None:
        await give_turn()

    task = asyncio.create_task(give())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
