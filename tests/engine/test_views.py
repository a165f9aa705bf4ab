"""Views that need more than a look: windows that are read first, and what is not lent at all."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.views import pages_of
from qedasync.errors import StorageError, storage_error
from qedasync.events import Event
from qedasync.storage.base import ZERO_CHUNK, ReadBuffers
from qedasync.storage.memory import MemoryStorage
from tests.engine.harness import CLUSTER, image

TABLE = 2 * CLUSTER
DATA = 3 * CLUSTER
CLUSTERS = 8
FILE = image(l1={0: TABLE}, l2={TABLE: {0: DATA, 1: DATA + CLUSTER, 2: 1}}, clusters=CLUSTERS)
WINDOW = CLUSTER // 4


class Pages:
    """A map whose windows are resident when they have been read."""

    window = WINDOW

    def __init__(self, content: bytes) -> None:
        self.view = memoryview(content)
        self.resident: set[int] = set()
        self.cached: set[int] = set()
        self.refreshed = 0
        self.considered: list[int] = []

    def probe(self, offset: int, length: int) -> bool:
        windows = range(offset // WINDOW, -(-(offset + length) // WINDOW))
        self.resident |= self.cached.intersection(windows)
        return self.resident.issuperset(windows)

    def consider(self, offset: int) -> None:
        self.considered.append(offset)
        self.probe(offset, 1)

    def refresh(self) -> None:
        self.refreshed += 1


class Stored(MemoryStorage):
    """A file with a map; reads of data count, fail if that is wished, and fill the cache."""

    def __init__(self) -> None:
        content = bytearray(FILE)
        content[DATA : DATA + 2 * CLUSTER] = bytes(range(256)) * (2 * CLUSTER // 256)
        super().__init__(content)
        self.pages = Pages(bytes(content))
        self.reads: list[tuple[int, int]] = []
        self.fails = False
        self.inline = 0  # reads at once
        self.may_read_inline = False

    def map(self) -> Pages:
        return self.pages

    def try_read_into(self, buffers: ReadBuffers, offset: int, event: Any = None) -> bool:
        self.inline += self.may_read_inline
        return self.may_read_inline and super().try_read_into(buffers, offset)

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        length = sum(map(len, buffers))
        if event is Event.READ_AIO:
            self.reads.append((offset, length))
            if self.fails:
                raise storage_error(errno.EIO, offset=offset, length=length)
            self.pages.cached |= {*range(offset // WINDOW, (offset + length) // WINDOW)}
        await super().read_into(buffers, offset, event)


async def lending(storage: Stored) -> Engine:
    engine = await Engine.open(storage, EngineOptions())
    pages = pages_of(storage)
    assert pages is not None
    engine.lend(pages)
    return engine


async def test_view_window_that_is_not_resident_is_read_whole_and_then_lent() -> None:
    storage = Stored()
    engine = await lending(storage)
    assert engine.try_view(10, 5) is None
    view = await engine.view(10, 5)
    assert bytes(view) == bytes(range(5, 15))
    assert view.obj is storage.pages.view.obj
    assert storage.reads == [(DATA, WINDOW)]
    again = engine.try_view(10, 20)
    assert bytes(again or b"") == bytes(range(20, 30))
    assert storage.reads == [(DATA, WINDOW)]
    await engine.close()


async def test_view_two_clusters_in_one_run_is_lent_in_one_piece() -> None:
    storage = Stored()
    engine = await lending(storage)
    view = await engine.view(CLUSTER, CLUSTER // 2)
    assert view.obj is storage.pages.view.obj
    assert len(view) == CLUSTER
    assert storage.reads == [(DATA + CLUSTER // 2, CLUSTER)]
    await engine.close()


async def test_try_view_two_windows_are_left_to_view() -> None:
    storage = Stored()
    engine = await lending(storage)
    view = await engine.view(2 * WINDOW, 0)
    assert view.obj is storage.pages.view.obj
    assert engine.try_view(WINDOW, 0) is not None
    assert engine.try_view(WINDOW, 1) is None
    await engine.close()


async def test_view_data_and_zeroes_are_copied() -> None:
    storage = Stored()
    engine = await lending(storage)
    view = await engine.view(20, 2 * CLUSTER - 10)
    assert bytes(view) == bytes(range(246, 256)) + bytes(10)
    assert view.obj is not storage.pages.view.obj
    assert view.readonly
    await engine.close()


@pytest.mark.parametrize("pos", [2 * CLUSTER, 5 * CLUSTER])
async def test_view_zeroes_are_shared(pos: int) -> None:
    storage = Stored()
    engine = await lending(storage)
    for view in (await engine.view(100, pos), engine.try_view(100, pos)):
        assert view is not None
        assert view.obj is ZERO_CHUNK
        assert len(view) == 100
    await engine.close()


async def test_view_disk_that_fails_raises_and_lends_nothing() -> None:
    storage = Stored()
    engine = await lending(storage)
    storage.fails = True
    with pytest.raises(StorageError) as caught:
        await engine.view(10, 0)
    assert caught.value.errno == errno.EIO
    assert engine.try_view(10, 0) is None
    storage.fails = False
    assert bytes(await engine.view(10, 0)) == bytes(range(10))
    await engine.close()


async def test_view_budget_used_up_gives_the_loop_a_turn_and_looks_at_the_map() -> None:
    storage = Stored()
    engine = await lending(storage)
    await engine.view(1, 0)
    while engine.try_view(1, 0) is not None:
        pass
    assert storage.pages.refreshed == 0
    assert bytes(await engine.view(1, 1)) == b"\1"
    assert storage.pages.refreshed == 1
    assert engine.current_stats().pauses == 1
    await engine.close()


def got(engine: Engine, length: int, pos: int) -> bytes:
    """What is read at once, perhaps nothing."""
    return bytes(engine.try_read(length, pos) or b"")


async def test_try_read_copies_what_is_resident() -> None:
    storage = Stored()
    engine = await lending(storage)
    await engine.view(1, 0)
    reads = engine.inline_reads
    assert got(engine, WINDOW - 5, 5) == (bytes(range(256)) * (WINDOW // 256))[5:]
    assert engine.try_read(10, WINDOW - 5) is None, "half of it is in another window"
    assert (engine.inline_reads, storage.inline) == (reads + 1, 0)
    await engine.close()


async def test_try_read_of_what_is_cached_but_not_yet_known_to_be_makes_it_known() -> None:
    storage = Stored()
    engine = await lending(storage)
    await engine.view(1, 0)
    storage.may_read_inline = True
    storage.pages.cached.add((DATA + CLUSTER) // WINDOW)
    for _ in range(3):
        assert got(engine, 2, CLUSTER + 7) == b"\7\x08"
    assert storage.pages.considered == [DATA + CLUSTER + 7]
    assert storage.inline == 1
    await engine.close()


@pytest.mark.parametrize("pos", [2 * CLUSTER, 5 * CLUSTER])
async def test_try_read_zeroes_of_a_mapped_image_are_no_part_of_the_file(pos: int) -> None:
    storage = Stored()
    engine = await lending(storage)
    await engine.view(1, 0)
    storage.pages.resident |= {*range(CLUSTERS * CLUSTER // WINDOW)}
    assert got(engine, 9, pos) == bytes(9)
    assert got(engine, 9, pos + CLUSTER - 9) == bytes(9)
    assert storage.pages.considered == []
    await engine.close()


async def test_try_read_mapped_used_up_budget_pauses_and_looks_at_the_map() -> None:
    storage = Stored()
    engine = await lending(storage)
    await engine.view(1, 0)
    while engine.try_read(1, 0) is not None:
        pass
    assert await engine.read(1, 1) == b"\1"
    assert storage.pages.refreshed == 1
    await engine.close()


async def test_view_out_of_range_or_closed_is_not_lent() -> None:
    storage = Stored()
    engine = await lending(storage)
    await engine.view(WINDOW, 0)
    for length, pos in ((0, 0), (-1, 0), (1, -1), (2, engine.image_size - 1)):
        assert engine.try_view(length, pos) is None
        assert engine.try_read(length, pos) is None
    await engine.close()
    assert engine.try_view(1, 0) is None
    assert engine.try_read(1, 0) is None


async def test_engine_without_a_map_copies() -> None:
    engine = await Engine.open(MemoryStorage(FILE), EngineOptions())
    assert engine.try_view(1, 0) is None
    assert bytes(await engine.view(10, 0)) == bytes(10)
    assert pages_of(engine.storage) is None
    await engine.close()
