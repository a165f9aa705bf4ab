"""Block status of tables that are one run: seen in the table itself, as true as by slices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random

import pytest

from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.extents import Extent, ExtentKind
from qedasync.errors import CorruptTable
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.quirks.images import CLUSTER, image, tables_at

TABLE_SIZE = 4
N = TABLE_SIZE * 512
"""Entries of a table: four slices."""

SPAN = N * CLUSTER
TABLE = tables_at(table_size=TABLE_SIZE)
SECOND = TABLE + TABLE_SIZE * CLUSTER
DATA = SECOND + TABLE_SIZE * CLUSTER
RUN = {i: DATA + i * CLUSTER for i in range(N)}


def two_tables(
    first: Mapping[int, int], second: Mapping[int, int] | None = None, n_clusters: int = N
) -> SparseBytes:
    return image(
        2 * SPAN,
        table_size=TABLE_SIZE,
        l1={0: TABLE, 1: SECOND} if second is not None else {0: TABLE},
        l2={TABLE: first, SECOND: second or {}},
        file_size=DATA + n_clusters * CLUSTER,
    )


@asynccontextmanager
async def engine_on(content: SparseBytes, *, writable: bool = False) -> AsyncIterator[Engine]:
    engine = await Engine.open(MemoryStorage(content), EngineOptions(writable=writable))
    engine.mapper._path = "disk.qed"
    try:
        yield engine
    finally:
        await engine.close()


def data(start: int, length: int, offset: int) -> Extent:
    return Extent(start, length, ExtentKind.DATA, False, offset=offset, path="disk.qed")


@pytest.mark.parametrize("writable", [False, True])
async def test_run_ahead_whole_tables_are_one_run_and_no_slice_is_kept(writable: bool) -> None:
    second = {i: DATA + (N + i) * CLUSTER for i in range(N)}
    async with engine_on(two_tables(RUN, second, 2 * N), writable=writable) as engine:
        assert [run async for run in engine.extents()] == [data(0, 2 * SPAN, DATA)]
        assert len(engine.tables.cache) == 0


@pytest.mark.parametrize("index", [0, 1, 511, 512, 1500, N - 1])
@pytest.mark.parametrize("other", [0, 1, DATA + 100 * CLUSTER])
async def test_run_ahead_one_entry_is_another_gives_three_runs(index: int, other: int) -> None:
    async with engine_on(two_tables(RUN | {index: other})) as engine:
        runs = await engine.block_status(0, SPAN)
        (found,) = [run for run in runs if run.start <= index * CLUSTER < run.end]
        assert (
            found.kind is [ExtentKind.UNALLOCATED, ExtentKind.ZERO, ExtentKind.DATA][min(other, 2)]
        )
        assert len(runs) == (2 if index in (0, N - 1) else 3) - (index == 100)


@pytest.mark.parametrize(
    "first",
    [8, DATA + 1, DATA + CLUSTER, CLUSTER // 2, 2**63 + DATA, 2**64 - 5 * CLUSTER],
    ids=["header", "unaligned", "past-the-end", "below-a-cluster", "top-bit", "wraps"],
)
async def test_run_ahead_run_of_no_data_clusters_is_refused(first: int) -> None:
    entries = {i: (first + i * CLUSTER) % 2**64 for i in range(N)}
    async with engine_on(two_tables(entries)) as engine:
        with pytest.raises(CorruptTable):
            await engine.block_status(0, SPAN)


async def test_run_ahead_run_over_l1_is_refused() -> None:
    l1 = 100 * CLUSTER
    content = image(
        2 * SPAN,
        table_size=TABLE_SIZE,
        l1_table_offset=l1,
        l1={0: l1 + TABLE_SIZE * CLUSTER},
        l2={l1 + TABLE_SIZE * CLUSTER: {i: (1 + i) * CLUSTER for i in range(N)}},
        file_size=3 * N * CLUSTER,
    )
    async with engine_on(content) as engine:
        with pytest.raises(CorruptTable):
            await engine.block_status(0, SPAN)


async def test_run_ahead_run_over_a_table_is_refused_where_it_could_be_written() -> None:
    entries = {i: SECOND + i * CLUSTER for i in range(N)}
    async with engine_on(two_tables(entries, {}), writable=True) as engine:
        with pytest.raises(CorruptTable, match="on top of"):
            await engine.block_status(0, SPAN)


async def test_run_ahead_clusters_that_the_file_had_not_at_open_are_refused() -> None:
    """A write makes the file longer; what was past its end is not the guest's all the same."""
    entries = {i: DATA + i * CLUSTER for i in range(N)}
    async with engine_on(two_tables(entries, {}, N - 1), writable=True) as engine:
        await engine.write((bytes(CLUSTER),), SPAN, CLUSTER)
        with pytest.raises(CorruptTable):
            await engine.block_status(0, SPAN)


async def test_run_ahead_entries_not_yet_published_are_not_told() -> None:
    async with engine_on(two_tables({0: 0}, {}), writable=True) as engine:
        number, old = 0, await engine.tables.slice_entries(0)
        engine.tables.forget([number])
        content = two_tables(RUN)
        raw = bytearray(N * 8)
        content.read_into(raw, TABLE)
        await engine.storage.write([raw], TABLE)  # a commit has come so far
        with engine.tables.hold({number: old}):
            assert (await engine.block_status(0, SPAN))[0].kind is ExtentKind.UNALLOCATED


@pytest.mark.parametrize("seed", range(6))
async def test_run_ahead_any_range_is_what_its_clusters_are(seed: int) -> None:
    random, entries = Random(seed), list[int]()
    while len(entries) < 2 * N:
        first, n = random.choice([0, 1, *[random.randrange(50, 900)] * 3]), random.choice([9, 3000])
        entries += [DATA + (first + i) * CLUSTER if first > 1 else first for i in range(n)]
    first_table, second = dict(enumerate(entries[:N])), dict(enumerate(entries[N : 2 * N]))
    async with engine_on(two_tables(first_table, second, 4000)) as engine:
        for _ in range(8):
            start = random.choice([0, 512, random.randrange(2 * N - 1)]) * CLUSTER
            end = random.choice([2 * SPAN, random.randrange(start + 1, 2 * SPAN)])
            found = {}
            for run in await engine.block_status(start, end - start):
                for pos in range(run.start, run.end, CLUSTER):
                    found[pos // CLUSTER] = run.offset and run.offset + pos - run.start
            clusters = range(start // CLUSTER, -(-end // CLUSTER))
            expected = {i: entries[i] if entries[i] > 1 else None for i in clusters}
            assert found == expected, seed
