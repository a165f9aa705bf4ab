"""Waiting that outlasts cancellation."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.waiting import Settled, until_done
from tests.engine.harness import turns


async def test_wait_already_done_returns() -> None:
    settled = Settled(asyncio.get_running_loop())
    settled.finish()
    await settled.wait()
    settled.finish()


async def test_wait_returns_when_finished() -> None:
    settled = Settled(asyncio.get_running_loop())
    waiting = asyncio.create_task(settled.wait())
    await turns()
    assert not waiting.done()
    settled.finish()
    await waiting


async def test_wait_cancelled_again_and_again_raises_only_when_done() -> None:
    settled = Settled(asyncio.get_running_loop())
    waiting = asyncio.create_task(settled.wait())
    for _ in range(3):
        await turns()
        waiting.cancel()
    await turns()
    assert not waiting.done()
    settled.finish()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_wait_finished_and_cancelled_at_once_ends() -> None:
    settled = Settled(asyncio.get_running_loop())
    waiting = asyncio.create_task(settled.wait())
    await turns()
    settled.finish()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_until_done_cancelled_again_and_again_raises_only_when_the_task_has_ended() -> None:
    release = asyncio.Event()
    task = asyncio.create_task(release.wait())
    waiting = asyncio.create_task(until_done(task))
    for _ in range(3):
        await turns()
        waiting.cancel()
    await turns()
    assert not waiting.done()
    assert not task.cancelled()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert task.done()


async def test_until_done_failed_task_leaves_the_error_to_the_caller() -> None:
    async def fail() -> None:
        raise LookupError

    task = asyncio.create_task(fail())
    await until_done(task)
    assert isinstance(task.exception(), LookupError)
