"""How a verb's coroutine is run where there is no event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Generator
from types import coroutine

import pytest

from qedasync.cli.nodes import LoopNeeded
from qedasync.cli.run import Interrupted, run_at_once, run_early
from qedasync.turns import give_turn


def test_coroutine_that_waits_for_nothing_is_run_to_its_end() -> None:
    async def inner() -> int:
        return 7

    async def outer() -> int:
        return await inner() + 1

    assert run_at_once(outer()) == 8


def test_coroutine_that_waits_is_a_mistake() -> None:
    @coroutine
    def ask() -> Generator[object, None, None]:
        yield "for a future"

    async def work() -> None:
        await ask()

    with pytest.raises(RuntimeError, match="waits"):
        run_at_once(work())


def test_coroutine_that_gives_turns_goes_on_at_once() -> None:
    async def work() -> int:
        await give_turn()
        await give_turn()
        return 7

    assert run_at_once(work()) == 7


def test_verb_that_needs_a_loop_is_begun_again_on_one() -> None:
    seen: list[bool] = []

    async def work(at_once: bool) -> int:
        seen.append(at_once)
        if at_once:
            raise LoopNeeded
        await asyncio.sleep(0.001)
        return 7

    assert run_early(work) == 7
    assert seen == [True, False]


def test_sigterm_ends_the_coroutine_where_it_is_and_lets_it_tidy_up() -> None:
    tidied: list[int] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            tidied.append(1)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        run_at_once(work())
    assert (caught.value.code, tidied) == (143, [1])
    assert signal.getsignal(signal.SIGTERM) is before


def test_on_another_thread_the_coroutine_is_run_without_signals() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    thread = threading.Thread(target=lambda: run_at_once(work()))
    thread.start()
    thread.join()
    assert done == [1]
