"""What the mapping says of a range, through the layers."""

from __future__ import annotations

import asyncio
import itertools
from random import Random

import pytest

from qedasync.engine.core import Engine
from qedasync.engine.extents import Extent, ExtentKind
from qedasync.errors import CorruptTable, ImageClosed
from tests.engine.harness import CLUSTER, SPAN, Bytes, image, opened

TABLE = 2 * CLUSTER
DATA, ZERO, NONE, BACKING = (
    ExtentKind.DATA,
    ExtentKind.ZERO,
    ExtentKind.UNALLOCATED,
    ExtentKind.BACKING,
)

MIXED = image(
    4 * SPAN,
    clusters=12,
    l1={0: TABLE},
    l2={TABLE: {0: 4 * CLUSTER, 1: 5 * CLUSTER, 2: 1, 4: 9 * CLUSTER, 5: 7 * CLUSTER}},
)


def data(start: int, length: int, offset: int) -> Extent:
    return Extent(start, length, DATA, False, offset=offset, path="disk.qed")


async def extents(engine: Engine) -> list[Extent]:
    return [extent async for extent in engine.extents()]


async def test_block_status_mixed_runs() -> None:
    async with opened(MIXED) as engine:
        assert await engine.block_status(0, 4 * SPAN) == [
            data(0, 2 * CLUSTER, 4 * CLUSTER),
            Extent(2 * CLUSTER, CLUSTER, ZERO, True),
            Extent(3 * CLUSTER, CLUSTER, NONE, True),
            data(4 * CLUSTER, CLUSTER, 9 * CLUSTER),
            data(5 * CLUSTER, CLUSTER, 7 * CLUSTER),
            Extent(6 * CLUSTER, 4 * SPAN - 6 * CLUSTER, NONE, True),
        ]


async def test_block_status_inside_a_cluster_has_the_exact_offset() -> None:
    async with opened(MIXED) as engine:
        assert await engine.block_status(CLUSTER + 7, 10) == [
            data(CLUSTER + 7, 10, 5 * CLUSTER + 7)
        ]


async def test_block_status_over_backing_is_one_layer_down_until_its_end() -> None:
    async with opened(MIXED, backing=Bytes(bytes(7 * CLUSTER + 99))) as engine:
        runs = await engine.block_status(2 * CLUSTER, 6 * CLUSTER)
        below = [
            Extent(pos, length, BACKING, False, depth=1, offset=pos, path="base.raw")
            for pos, length in ((3 * CLUSTER, CLUSTER), (6 * CLUSTER, CLUSTER + 99))
        ]
        assert runs == [
            Extent(2 * CLUSTER, CLUSTER, ZERO, True),
            below[0],
            data(4 * CLUSTER, CLUSTER, 9 * CLUSTER),
            data(5 * CLUSTER, CLUSTER, 7 * CLUSTER),
            below[1],
            Extent(7 * CLUSTER + 99, CLUSTER - 99, NONE, True),
        ]


async def test_block_status_what_no_layer_has_stays_unallocated() -> None:
    class Empty(Bytes):
        async def block_status(self, pos: int, length: int) -> list[Extent]:
            return [Extent(pos, length, NONE, True)]

    async with opened(image(), backing=Empty(bytes(SPAN))) as engine:
        assert await engine.block_status(0, 2 * SPAN) == [
            Extent(0, SPAN, NONE, True, depth=1),  # that layer was asked, and is the last
            Extent(SPAN, SPAN, NONE, True),  # it is too short for this
        ]


async def test_block_status_depth_counts_layers() -> None:
    class Deep(Bytes):
        async def block_status(self, pos: int, length: int) -> list[Extent]:
            return [Extent(pos, length, BACKING, False, depth=4, offset=pos, path="x")]

    async with opened(image(512), backing=Deep(bytes(512))) as engine:
        assert (await engine.block_status(0, 512))[0].depth == 5


async def test_block_status_corrupt_entry_raises() -> None:
    content = image(clusters=4, l1={0: TABLE}, l2={TABLE: {3: 12345}})
    async with opened(content) as engine:
        assert len(await engine.block_status(0, 3 * CLUSTER)) == 1
        with pytest.raises(CorruptTable):
            await engine.block_status(0, 4 * CLUSTER)


async def test_extents_are_the_whole_image_joined() -> None:
    async with opened(MIXED) as engine:
        assert await extents(engine) == await engine.block_status(0, 4 * SPAN)


async def test_extents_joins_runs_over_table_borders() -> None:
    entries = {i: (4 + i) * CLUSTER for i in range(512)}
    more = {i: (516 + i) * CLUSTER for i in range(512)}
    content = image(
        2 * SPAN,
        clusters=4 + 1024,
        l1={0: TABLE, 1: 3 * CLUSTER},
        l2={TABLE: entries, 3 * CLUSTER: more},
    )
    async with opened(content) as engine:
        assert await extents(engine) == [data(0, 2 * SPAN, 4 * CLUSTER)]


async def test_extents_empty_huge_image_is_one_step() -> None:
    async with opened(image(512 * SPAN)) as engine:
        assert await extents(engine) == [Extent(0, 512 * SPAN, NONE, True)]


async def test_extents_empty_image_of_no_bytes_has_none() -> None:
    async with opened(image(0)) as engine:
        assert await extents(engine) == []


async def test_extents_fragmented_image_gives_every_run() -> None:
    # Backwards, so that nothing joins, and more runs than go without a turn of the loop.
    entries = {i: (600 - i) * CLUSTER for i in range(512)}
    content = image(SPAN, clusters=601, l1={0: TABLE}, l2={TABLE: entries})
    async with opened(content) as engine:
        assert len(await extents(engine)) == 512


def random_image(random: Random, *, bad: bool) -> tuple[bytes, list[int]]:
    """Three tables, in runs and out of order; without the last entry's cluster if ``bad``."""
    tables = [TABLE, 3 * CLUSTER, 4 * CLUSTER]
    entries: list[int] = []
    while len(entries) < 3 * 512:
        first, n = random.choice([0, 1, random.randrange(5, 900)]), random.choice([1, 2, 9, 400])
        entries += [(first + i) * CLUSTER if first > 1 else first for i in range(n)]
    entries = entries[: 3 * 512]
    if bad:
        entries[-1] = 123
    content = image(
        3 * SPAN,
        clusters=1400,
        l1=dict(enumerate(tables)),
        l2={t: dict(enumerate(entries[512 * i : 512 * (i + 1)])) for i, t in enumerate(tables)},
    )
    return content, entries


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("seed", range(8))
async def test_block_status_of_any_range_is_that_of_its_clusters(
    seed: int, backed: bool, bad: bool
) -> None:
    random = Random(seed)
    content, entries = random_image(random, bad=bad)
    backing = Bytes(bytes(2 * SPAN + 1000)) if backed else None
    async with opened(content, backing=backing) as engine:
        for _ in range(10):
            start = random.randrange(3 * SPAN - CLUSTER)
            end = random.randrange(start + 1, 3 * SPAN - CLUSTER + 1)
            runs = await engine.block_status(start, end - start)
            assert runs[0].start == start
            assert runs[-1].end == end
            for run, following in itertools.pairwise(runs):
                assert run.end == following.start
                assert not following.continues(run)
            for run in runs:
                for pos in range(run.start, run.end, CLUSTER):
                    entry, inside = entries[pos // CLUSTER], pos - run.start
                    if entry > 1:
                        place = entry + pos % CLUSTER
                        assert (run.kind, run.offset) == (DATA, place - inside), (seed, pos)
                    else:
                        below = BACKING if backed and pos < 2 * SPAN + 1000 else NONE
                        assert run.kind is (ZERO if entry else below), (seed, pos)
        if bad:
            with pytest.raises(CorruptTable):
                await engine.block_status(0, 3 * SPAN)
        else:
            assert await extents(engine) == await engine.block_status(0, 3 * SPAN)


async def test_extents_of_slices_at_hand_gives_the_loop_turns() -> None:
    entries = {i: (600 - i) * CLUSTER for i in range(512)}
    content = image(8 * SPAN, clusters=601, l1=dict.fromkeys(range(8), TABLE), l2={TABLE: entries})
    async with opened(content, writable=False) as engine:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        assert len(await extents(engine)) == 8 * 512
        ticker.cancel()
        assert ticks >= 8


async def test_extents_closed_on_the_way_raises_image_closed() -> None:
    async with opened(MIXED) as engine:
        runs = engine.extents()
        await anext(runs)
        await engine.close()
        with pytest.raises(ImageClosed):
            async for _ in runs:
                pass
        with pytest.raises(ImageClosed):
            await extents(engine)
