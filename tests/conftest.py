"""What every test gets: both event loops, debug mode, and a search for what it left behind.

An async test runs once on asyncio's own loop and once on uvloop; its id says which. After any test
its tasks and threads have ended and its descriptors are closed, or the test has an error. One that
cannot help it says so with ``@pytest.mark.leaves_over(reason)``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import hypothesis
import pytest
from pytest_asyncio import is_async_test

try:
    import uvloop
except ImportError:  # there is none on Windows
    uvloop = None  # type: ignore[assignment]

LINGER = 2.0
"""Seconds a thread may take to end after its test."""

TURNS = 3
"""Loop turns a finished or cancelled task may take to leave."""

# No test may depend on speed. With CI set the examples are the same in every run.
hypothesis.settings.register_profile(
    "qedasync", deadline=None, print_blob=True, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("qedasync")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops to run each async test on, by the name its id shows."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.new_event_loop
    }
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_sessionstart() -> None:
    """Use each kind of loop once: uvloop's first one opens a pipe that the process keeps."""
    for factory in pytest_asyncio_loop_factories().values():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.sleep(0))


@pytest.fixture(autouse=True)
def nothing_left_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads or descriptors; set up first, so it looks last."""
    if request.node.get_closest_marker("leaves_over"):
        yield
        return
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    left = [f"thread {thread.name!r}" for thread in lingering_threads(threads)]
    left += [f"descriptor {number} -> {target}" for number, target in new_descriptors(descriptors)]
    if left:
        pytest.fail(f"left over by the test: {', '.join(left)}", pytrace=False)


@pytest.fixture(autouse=True)
def no_task_left_over(request: pytest.FixtureRequest, nothing_left_over: None) -> None:
    """Have the loop of an async test watched; a synchronous test has none."""
    if is_async_test(request.node) and not request.node.get_closest_marker("leaves_over"):
        request.getfixturevalue("watched_loop")


@pytest.fixture
async def watched_loop() -> AsyncIterator[None]:
    """Fail a test that leaves tasks, or whose loop met an exception that nobody handled."""
    unhandled: list[Mapping[str, Any]] = []

    def note(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        unhandled.append(context)
        if isinstance(context.get("exception"), pytest.fail.Exception):
            loop.stop()  # the time limit: uvloop hands it here and would go on waiting

    asyncio.get_running_loop().set_exception_handler(note)
    yield
    left = [f"task {task!r}" for task in await lingering_tasks()]
    left += [f"unhandled {context}" for context in unhandled]
    if left:
        pytest.fail(f"left over by the test: {', '.join(left)}", pytrace=False)


async def lingering_tasks() -> set[asyncio.Task[Any]]:
    """The loop's tasks, except the caller's, that do not end within a few turns."""
    for turn in range(TURNS + 1):
        if turn:
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            break
    return tasks


def lingering_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that are not in ``before`` and do not end within ``LINGER`` seconds.

    Threads that :mod:`threading` did not start (those of pytest-xdist's channel) do not count.
    """
    new = set(threading.enumerate()) - before
    new = {thread for thread in new if not isinstance(thread, threading._DummyThread)}
    deadline = time.monotonic() + LINGER
    for thread in new:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in new if thread.is_alive()]


def new_descriptors(before: set[tuple[int, str]]) -> list[tuple[int, str]]:
    """Descriptors that are open now and not in ``before``, once garbage is gone."""
    if open_descriptors() - before:
        gc.collect()
    return sorted(open_descriptors() - before)


def open_descriptors() -> set[tuple[int, str]]:
    """The process's open descriptors with what they lead to; none where Linux's /proc is not."""
    if sys.platform != "linux":
        return set()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found
