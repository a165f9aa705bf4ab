"""Writes into new clusters that nobody waits for: taken or not, and who hears of their end."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.engine.core import Engine
from qedasync.errors import ImageFailed, QEDError, StorageError
from qedasync.events import Event
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.engine.harness import CLUSTER, SPAN, image, opened, turns

TABLE = 2 * CLUSTER


def one_mapped() -> bytes:
    """The first cluster holds data, the second is ZERO, no other is allocated."""
    return image(clusters=5, l1={0: TABLE}, l2={TABLE: {0: 4 * CLUSTER, 1: 1}})


class Heard(list[QEDError | None]):
    """What has been told of the ends of writes."""

    def write(self, engine: Engine, data: bytes, pos: int) -> bool:
        return engine.write_soon(data, pos, len(data), self.append)


async def at_hand(engine: Engine) -> None:
    """Have the first slice in the cache."""
    await engine.read(1, 0)


async def test_write_soon_into_new_clusters_is_told_when_all_can_be_read() -> None:
    async with opened(one_mapped()) as engine:
        await at_hand(engine)
        heard = Heard()
        for number in (1, 2, 3):
            assert heard.write(engine, b"new", number * CLUSTER + 5)
        assert not heard
        await turns()
        assert heard == [None, None, None]
        for number in (1, 2, 3):
            assert await engine.read(5, number * CLUSTER + 4) == b"\0new\0"
        assert (engine.stats.writes, engine.stats.write_bytes) == (3, 9)
        assert engine.stats.groups == 1


@pytest.mark.parametrize(
    ("pos", "length"),
    [
        (5, 3),  # holds data
        (2 * CLUSTER - 1, 2),  # two clusters
        (SPAN, 3),  # no table there
        (2 * SPAN - 1, 2),  # past the end
        (-1, 1),
        (CLUSTER, 0),
    ],
)
async def test_write_soon_of_another_kind_is_left_to_write(pos: int, length: int) -> None:
    async with opened(one_mapped()) as engine:
        await at_hand(engine)
        heard = Heard()
        assert not heard.write(engine, bytes(length), pos)
        await turns()
        assert heard == []
        assert engine.gate.inside == 0


@pytest.mark.parametrize(("writable", "write_through"), [(False, False), (True, True)])
async def test_write_soon_of_an_image_that_refuses_or_must_flush_is_left_to_write(
    writable: bool, write_through: bool
) -> None:
    options = {"writable": writable, "write_through": write_through}
    async with opened(one_mapped(), backing=None, **options) as engine:
        await at_hand(engine)
        assert not Heard().write(engine, b"new", CLUSTER)


async def test_write_soon_behind_a_shut_gate_is_left_to_write() -> None:
    async with opened(one_mapped()) as engine:
        await at_hand(engine)
        async with engine.exclusive():
            assert not Heard().write(engine, b"new", CLUSTER)
        assert Heard().write(engine, b"new", CLUSTER)


async def test_write_soon_that_fails_is_told_of_its_error_and_only_that_one() -> None:
    storage = FaultStorage(MemoryStorage(one_mapped()))
    async with opened(storage) as engine:
        await at_hand(engine)
        heard = Heard()
        for call in (1, 2):  # the group, and the first alone
            storage.add(Fault("error", event=Event.WRITE_AIO, call=call, errno=28))
        assert heard.write(engine, b"one", CLUSTER)
        assert heard.write(engine, b"two", 2 * CLUSTER)
        await turns()
        assert heard[1] is None
        assert isinstance(heard[0], StorageError)
        assert heard[0].errno == 28
        assert await engine.read(3, 2 * CLUSTER) == b"two"
        assert await engine.read(3, CLUSTER) == bytes(3)
        assert engine.stats.writes == 1


async def test_close_waits_for_a_write_soon() -> None:
    async with opened(one_mapped()) as engine:
        await at_hand(engine)
        heard = Heard()
        async with engine.queue.turn:
            assert heard.write(engine, b"new", CLUSTER)
            closing = asyncio.create_task(engine.close())
            await turns()
            assert not heard
        await closing
        assert heard == [None]
        assert not heard.write(engine, b"new", 2 * CLUSTER)


async def test_write_soon_whose_loop_ends_is_told_that_the_image_stopped() -> None:
    async with opened(one_mapped()) as engine:
        await at_hand(engine)
        heard = Heard()
        async with engine.queue.turn:
            assert heard.write(engine, b"new", CLUSTER)
            await turns()
            engine.queue._committer.cancel()  # type: ignore[union-attr]  # as the loop's end does
            await turns()
        assert [type(error) for error in heard] == [ImageFailed]
        assert engine.gate.inside == 0


async def test_write_soon_is_told_to_who_begins_to_watch_before_its_end() -> None:
    async with opened(one_mapped()) as engine:
        await at_hand(engine)
        watched: list[tuple[int, int]] = []
        assert Heard().write(engine, b"new", CLUSTER + 7)
        with engine.watched(lambda pos, length: watched.append((pos, length))):
            assert not Heard().write(engine, b"new", 2 * CLUSTER)
            await turns()
        assert watched == [(CLUSTER + 7, 3)]
