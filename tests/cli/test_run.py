"""How a verb's coroutine is run where there is no event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from qedasync.cli.run import Interrupted, run_at_once


def test_coroutine_that_waits_for_nothing_is_run_to_its_end() -> None:
    async def inner() -> int:
        return 7

    async def outer() -> int:
        return await inner() + 1

    assert run_at_once(outer()) == 8


def test_coroutine_that_waits_is_a_mistake() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waits"):
        run_at_once(work())


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
