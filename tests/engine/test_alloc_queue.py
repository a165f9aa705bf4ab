"""Groups gather while the one before commits; whoever fails, fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from qedasync.engine.alloc_queue import AllocatingWrite, AllocQueue
from qedasync.engine.tasks import TaskOwner
from qedasync.errors import ImageFailed, StorageError
from tests.engine.harness import turns


class Commits:
    """What a queue commits, held until the test lets it go.

    Attributes:
        groups: positions of each group committed, failing ones too.
        bad: positions that fail.
    """

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.bad: set[int] = set()
        self.free = asyncio.Event()
        self.idle = 0
        self.tasks = TaskOwner("test")
        self.queue = AllocQueue(self.commit, self.note_idle, self.tasks)

    def note_idle(self) -> None:
        self.idle += 1

    async def commit(self, group: Sequence[AllocatingWrite]) -> None:
        self.groups.append([request.pos for request in group])
        await self.free.wait()
        if not self.bad.isdisjoint(self.groups[-1]):
            raise StorageError(5, offset=min(self.bad))

    def write(self, pos: int, length: int = 1) -> asyncio.Task[None]:
        return asyncio.create_task(self.queue.write(pos, length, [b"x"]))


@asynccontextmanager
async def commits() -> AsyncIterator[Commits]:
    made = Commits()
    yield made
    made.free.set()
    await made.tasks.drain()


async def test_write_one_commits_it_and_tells_idle() -> None:
    async with commits() as made:
        made.free.set()
        await made.write(7)
        assert made.groups == [[7]]
        await made.tasks.drain()
        assert made.idle == 1


async def test_write_several_meanwhile_become_one_group_in_order() -> None:
    async with commits() as made:
        first = made.write(0)
        await turns()
        others = [made.write(pos) for pos in (5, 3, 9)]
        await turns()
        assert made.groups == [[0]]
        made.free.set()
        await asyncio.gather(first, *others)
        assert made.groups == [[0], [5, 3, 9]]


async def test_write_started_together_is_one_group() -> None:
    async with commits() as made:
        made.free.set()
        await asyncio.gather(*(made.queue.write(pos, 1, None) for pos in range(5)))
        assert made.groups == [[0, 1, 2, 3, 4]]


async def test_write_many_is_cut_into_groups_of_bounded_number() -> None:
    async with commits() as made:
        made.free.set()
        await asyncio.gather(*(made.queue.write(pos, 1, None) for pos in range(600)))
        assert [len(group) for group in made.groups] == [256, 256, 88]


async def test_write_large_is_cut_into_groups_of_bounded_bytes() -> None:
    async with commits() as made:
        made.free.set()
        lengths = [20 << 20, 20 << 20, 64 << 20, 1, 1]
        await asyncio.gather(*(made.queue.write(i, n, None) for i, n in enumerate(lengths)))
        assert made.groups == [[0], [1], [2], [3, 4]]


async def test_write_group_fails_only_those_fail_that_must() -> None:
    async with commits() as made:
        made.bad = {2}
        made.free.set()
        results = await asyncio.gather(
            *(made.queue.write(pos, 1, None) for pos in range(4)), return_exceptions=True
        )
        assert [type(result) for result in results] == [
            type(None),
            type(None),
            StorageError,
            type(None),
        ]
        assert made.groups == [[0, 1, 2, 3], [0], [1], [2], [3]]


async def test_write_after_a_failure_is_served() -> None:
    async with commits() as made:
        made.bad = {1}
        made.free.set()
        with pytest.raises(StorageError):
            await made.write(1)
        await made.write(2)
        assert made.groups[-1] == [2]


async def test_write_cancelled_while_waiting_was_never_started() -> None:
    async with commits() as made:
        first = made.write(0)
        await turns()
        second, third = made.write(1), made.write(2)
        await turns()
        second.cancel()
        await turns()
        assert second.cancelled()
        made.free.set()
        await asyncio.gather(first, third)
        assert made.groups == [[0], [2]]


async def test_write_cancelled_before_the_turn_leaves_an_empty_group() -> None:
    async with commits() as made:
        made.free.set()
        async with made.queue.turn:
            only = made.write(0)
            await turns()
            only.cancel()
            await turns()
            assert only.cancelled()
        await made.tasks.drain()
        assert made.groups in ([], [[]])
        await made.write(1)
        assert made.groups[-1] == [1]


async def test_write_cancelled_in_a_running_group_raises_only_at_its_end() -> None:
    async with commits() as made:
        task = made.write(0)
        await turns()
        for _ in range(2):
            task.cancel()
            await turns()
        assert not task.done()
        made.free.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.groups == [[0]]


async def test_write_waits_while_somebody_else_has_the_turn() -> None:
    async with commits() as made:
        made.free.set()
        async with made.queue.turn:
            task = made.write(0)
            await turns()
            assert made.groups == []
        await task


async def test_turn_waiting_holder_comes_between_two_groups() -> None:
    async with commits() as made:
        order: list[str] = []

        async def other() -> None:
            async with made.queue.turn:
                order.append(f"after {len(made.groups)} groups")

        first = made.write(0)
        await turns()
        waiting = asyncio.create_task(other())
        await turns()
        second = made.write(1)
        await turns()
        made.free.set()
        await asyncio.gather(first, second, waiting)
        assert order == ["after 1 groups"]


async def test_committer_dies_everybody_is_woken_with_image_failed() -> None:
    async with commits() as made:
        running = made.write(0)
        await turns()
        waiting = made.write(1)
        await turns()
        made.queue._committer.cancel()  # type: ignore[union-attr]  # what loop shutdown does
        for task in (running, waiting):
            with pytest.raises(ImageFailed) as caught:
                await task
            assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_idle_is_not_told_while_more_is_waiting() -> None:
    async with commits() as made:
        first = made.write(0)
        await turns()
        second = made.write(1)
        await turns()
        made.free.set()
        await asyncio.gather(first, second)
        await made.tasks.drain()
        assert made.idle == 1
