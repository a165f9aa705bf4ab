"""Budget, by count: who is woken from a pause when, and with what share."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.engine.budget import INLINE_REQUESTS, SMALL, WOKEN, Budget


def use_up(budget: Budget) -> int:
    """Finish requests until the task would have to pause; how many that were."""
    done = 0
    while not budget.used_up:
        budget.reads += 1
        done += 1
    return done


async def test_new_budget_holds_a_turn_of_requests() -> None:
    budget = Budget(asyncio.get_running_loop())
    assert use_up(budget) == INLINE_REQUESTS


@pytest.mark.parametrize("tasks", [1, 3, WOKEN, WOKEN + 1, 5 * WOKEN])
async def test_pause_many_tasks_come_back_a_few_a_turn_with_a_share_each(tasks: int) -> None:
    loop = asyncio.get_running_loop()
    budget = Budget(loop)
    use_up(budget)
    turns = 0
    back: list[tuple[int, int]] = []  # the turn, and what could be done in it

    async def work() -> None:
        await budget.pause()
        back.append((turns, use_up(budget)))

    running = [asyncio.create_task(work()) for _ in range(tasks)]
    while not all(task.done() for task in running):
        await asyncio.sleep(0)
        turns += 1
    for turn in {turn for turn, _ in back}:
        shares = [share for when, share in back if when == turn]
        assert len(shares) <= WOKEN
        assert sum(shares) <= INLINE_REQUESTS
        assert min(shares) == max(shares) == INLINE_REQUESTS // len(shares)
    assert len(back) == budget.pauses == tasks
    assert len({turn for turn, _ in back}) == -(-tasks // WOKEN)


async def test_pause_first_come_is_first_woken() -> None:
    budget = Budget(asyncio.get_running_loop())
    order: list[int] = []

    async def work(number: int) -> None:
        await budget.pause()
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(3 * WOKEN):
            group.create_task(work(number))
    assert order == sorted(order)


async def test_pause_cancelled_takes_no_share_and_holds_nobody_up() -> None:
    budget = Budget(asyncio.get_running_loop())
    use_up(budget)
    gone = asyncio.create_task(budget.pause())
    stays = asyncio.create_task(budget.pause())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone, stays])
    assert gone.cancelled()
    assert budget.pauses == 1


async def test_shut_budget_lets_nothing_finish_inline_and_nobody_pause() -> None:
    budget = Budget(asyncio.get_running_loop())
    budget.shut()
    assert budget.reads >= budget.limit
    assert not budget.used_up
    await budget.pause()  # one that was on its way in takes no share
    assert budget.reads >= budget.limit
    budget.open()
    assert budget.used_up


async def test_charge_takes_the_length_into_account() -> None:
    budget = Budget(asyncio.get_running_loop())
    budget.charge(4096)
    assert use_up(budget) == INLINE_REQUESTS - 1
    budget = Budget(asyncio.get_running_loop())
    budget.charge(5 * SMALL)
    assert use_up(budget) == INLINE_REQUESTS - 6


async def test_renewed_budget_is_whole_a_turn_later() -> None:
    budget = Budget(asyncio.get_running_loop())
    assert use_up(budget) == INLINE_REQUESTS
    budget.renew_soon()
    assert budget.used_up, "not in this turn"
    await asyncio.sleep(0)
    assert use_up(budget) == INLINE_REQUESTS


async def test_renewal_while_somebody_pauses_waits_for_the_turn_after() -> None:
    budget = Budget(asyncio.get_running_loop())
    use_up(budget)
    pausing = asyncio.create_task(budget.pause())
    await asyncio.sleep(0)
    budget.renew_soon()
    await pausing
    await asyncio.sleep(0)
    assert use_up(budget) == INLINE_REQUESTS


async def test_renewal_of_a_shut_budget_lets_nothing_finish_inline() -> None:
    budget = Budget(asyncio.get_running_loop())
    budget.shut()
    budget.renew_soon()
    await asyncio.sleep(0)
    assert budget.reads >= budget.limit
