"""The attacks one thinks of first, each on its own: headers, tables, and files that are all hole.

What they cost is counted in bytes read, bytes of memory and, where there are millions of entries,
processor time. Other time is bounded by the limit of a test.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, nullcontext
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

import qedasync
from qedasync import Extent, FormatError, Image
from qedasync.errors import CorruptTable, HeaderError, StorageError, UnsupportedFeature
from qedasync.format.header import Features
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.opener import open_storage
from tests.hostile.cost import MEMORY, SECONDS, cheap
from tests.hostile.meter import Meter
from tests.quirks.images import CLUSTER, KIB, MIB, image, write_file

GIB, TIB = 1 << 30, 1 << 40

pytestmark = pytest.mark.timeout(20)

L1, L2, DATA = CLUSTER, 3 * CLUSTER, 5 * CLUSTER  # as ``image`` lays them out


def small(
    l1: Mapping[int, int] | None = None, l2: Mapping[int, int] | None = None, **more: Any
) -> SparseBytes:
    """An image of 8 MiB: two tables of two clusters, and 20 clusters behind them."""
    entries = {0: DATA} if l2 is None else l2
    more.setdefault("file_size", DATA + 20 * CLUSTER)
    return image(8 * MIB, l1={0: L2} if l1 is None else l1, l2={L2: entries}, **more)


def opened(meter: Meter, mode: str = "r+", **options: Any) -> Any:
    return qedasync.open("hostile.qed", cast("Any", mode), storage=meter, **options)


async def first_extents(disk: Image, n: int) -> list[Extent]:
    found = []
    async with aclosing(cast("Any", disk.extents())) as extents:
        async for extent in extents:
            found.append(extent)
            if len(found) == n:
                break
    return found


# ------------------------------------------------------------------------ header


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"cluster_size": 0}, "cluster_size"),
        ({"cluster_size": 3 * CLUSTER}, "cluster_size"),
        ({"cluster_size": 128 * MIB}, "cluster_size"),
        ({"table_size": 0}, "table_size"),
        ({"table_size": 32}, "table_size"),
        ({"header_size": 0}, "header_size"),
        ({"header_size": 2**32 - 1}, "l1_table_offset"),
        ({"header_size": 2}, "l1_table_offset"),
        ({"image_size": 2**63}, "image_size"),
        ({"image_size": 2**64 - 512}, "image_size"),
        ({"image_size": 4 * GIB + 512}, "image_size"),
        ({"image_size": 1}, "image_size"),
        ({"l1_table_offset": 0}, "l1_table_offset"),
        ({"l1_table_offset": 512}, "l1_table_offset"),
        ({"l1_table_offset": CLUSTER + 8}, "l1_table_offset"),
        ({"l1_table_offset": 24 * CLUSTER}, "l1_table_offset"),
        ({"l1_table_offset": 2**64 - CLUSTER}, "l1_table_offset"),
        ({"features": 1 << 63}, "features"),
        ({"features": 8}, "features"),
        ({"features": 1, "backing_filename_offset": 2**32 - 1}, "backing_filename_offset"),
        (
            {"features": 1, "backing_filename_size": 4096, "backing_filename_offset": 64},
            "backing_filename_offset",
        ),
        ({"features": 1, "backing_filename_size": 2**32 - 1}, "backing_filename_offset"),
    ],
)
async def test_header_field_that_cannot_be_is_named_after_one_read(
    fields: dict[str, int], wrong: str
) -> None:
    content = small()
    packed = bytearray(64)
    content.read_into(packed, 0)
    places = {"cluster_size": (4, 4), "table_size": (8, 4), "header_size": (12, 4)}
    places |= {"features": (16, 8), "l1_table_offset": (40, 8), "image_size": (48, 8)}
    places |= {"backing_filename_offset": (56, 4), "backing_filename_size": (60, 4)}
    for name, value in fields.items():
        offset, length = places[name]
        content.write(value.to_bytes(length, "little"), offset)
    for mode in ("r", "r+"):
        meter = Meter(MemoryStorage(content.copy()))
        with pytest.raises((HeaderError, UnsupportedFeature)) as caught:
            await opened(meter, mode)
        assert caught.value.field == wrong
        assert (meter.calls, meter.bytes_read, meter.changes) == (1, 64, 0)
        assert meter.closed


@pytest.mark.parametrize("table_size", [1, 16])
@pytest.mark.parametrize("cluster_size", [8 * KIB, MIB, 64 * MIB])
@pytest.mark.parametrize("size", [0, 1 << 40, 1 << 62])
async def test_file_of_8_kib_with_huge_tables_is_refused_and_costs_nothing(
    cluster_size: int, table_size: int, size: int
) -> None:
    """QEMU takes 860 MB for one like this."""
    content = small()
    content.write(struct.pack("<IIIQ", cluster_size, table_size, 1, 0), 4)
    content.write(struct.pack("<QQ", cluster_size, size), 40)
    content.resize(8 * KIB)
    for mode in ("r", "r+"):
        meter = Meter(MemoryStorage(content.copy()))
        with cheap(1 * MIB), pytest.raises(HeaderError):
            await opened(meter, mode)
        assert (meter.bytes_read, meter.changes) == (64, 0)


@pytest.mark.parametrize("kind", ["posix", "aiofiles"])
async def test_empty_image_with_tables_of_1_gib_in_a_hole_costs_nothing(
    kind: str, tmp_path: Path
) -> None:
    """The largest tables there are: only an image of 0 bytes can have them."""
    content = image(0, cluster_size=64 * MIB, table_size=16)
    path = write_file(tmp_path / "huge.qed", content)
    assert path.stat().st_size > GIB
    meter = Meter(await open_storage(path, kind, writable=True))
    with cheap(8 * MIB):
        async with opened(meter) as disk:
            assert meter.bytes_read <= 2 * 64  # tried inline first
            assert disk.size == 0
            if kind == "posix":  # the other one cannot tell holes
                assert (await disk.check(repair=True)).clean
            assert await first_extents(disk, 1) == []
    assert meter.bytes_read < 16 * MIB


# ----------------------------------------------------------------------- entries

WRAPPING = [
    *(2**64 - n for n in (1, 8, 512, CLUSTER, 2 * CLUSTER, 3 * CLUSTER)),
    *(2**63 + n for n in (-CLUSTER, 0, CLUSTER)),
    2**64 - L2,
]


@pytest.mark.parametrize("entry", [8, 512, CLUSTER, 2 * CLUSTER, 25 * CLUSTER, *WRAPPING])
@pytest.mark.parametrize("level", [1, 2])
async def test_entry_that_cannot_be_is_named_and_never_followed(level: int, entry: int) -> None:
    """On the header or L1, past the end, not at a cluster, or about to wrap around."""
    content = small(l1={0: entry}) if level == 1 else small(l2={0: entry, 1: DATA})
    before = bytes(content)
    meter = Meter(MemoryStorage(content))
    async with opened(meter) as disk:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: disk.pread(10, 5),
            lambda: disk.pwrite(b"x", 5),
            lambda: disk.write_zeroes(CLUSTER, 0),
            lambda: disk.discard(CLUSTER, 0),
            lambda: disk.block_status(0, 1),
        ]
        for call in calls:
            with pytest.raises(CorruptTable) as caught:
                await call()
            assert (caught.value.level, caught.value.value) == (level, entry)
        assert bytes(content) == before
        assert (await disk.check(repair=True)).ok
        assert await disk.pread(CLUSTER, 0) == bytes(CLUSTER)


@pytest.mark.parametrize("first", [2**64 - 2 * CLUSTER, 2**64 - CLUSTER, 24 * CLUSTER])
async def test_run_of_entries_that_wraps_or_leaves_the_file_is_cut(first: int) -> None:
    entries = {i: (first + i * CLUSTER) % 2**64 for i in range(600)}
    async with opened(Meter(MemoryStorage(small(l2=entries)))) as disk:
        with pytest.raises(CorruptTable):
            await disk.pread(600 * CLUSTER, 0)
        with pytest.raises(CorruptTable):
            await disk.pwrite(bytes(600 * CLUSTER), 0)
        assert (
            await disk.check()
        ).corruptions >= 570  # past the header and L1 the wrapped ones are valid


@pytest.mark.parametrize("place", [0, L1, L1 + CLUSTER, L2, L2 + CLUSTER])
@pytest.mark.parametrize("index", [0, 7])
async def test_data_on_metadata_is_never_written(place: int, index: int) -> None:
    content = small(l2={0: DATA, index: place or CLUSTER // 2})
    before = bytes(content)[: DATA - CLUSTER]
    async with opened(Meter(MemoryStorage(content)), need_check_timeout=0) as disk:
        pos = index * CLUSTER
        for call in (disk.pwrite(bytes(100), pos), disk.write_zeroes(CLUSTER, pos)):
            with pytest.raises(CorruptTable):
                await call
        assert bytes(content)[: DATA - CLUSTER] == before
    assert bytes(content)[: DATA - CLUSTER] == before


@pytest.mark.parametrize("other", [L2, L2 + CLUSTER])
async def test_tables_on_one_another_are_read_and_not_changed(other: int) -> None:
    content = small(l1={0: L2, 1: other}, l2={0: DATA + 10 * CLUSTER})
    before = bytes(content)
    async with opened(Meter(MemoryStorage(content))) as disk:
        assert await disk.pread(100, 0) == bytes(100)
        with pytest.raises(CorruptTable, match="overlaps"):
            await disk.pwrite(b"new", CLUSTER)  # would appear in another place, too
        assert bytes(content) == before
        await disk.check(repair=True)
        await disk.pwrite(b"new", CLUSTER)
        assert await disk.pread(3, CLUSTER + 1024 * CLUSTER) == bytes(3)


# -------------------------------------------------------------------- large tables

BIG = 1 << 21  # entries of the largest L1 there is


def with_big_l1(entry: int, n: int = BIG) -> SparseBytes:
    """16 MiB of L1, every entry of it the same."""
    content = image(1 << 62, cluster_size=MIB, table_size=16, file_size=40 * MIB)
    content.write(array("Q", [entry]).tobytes() * n, MIB)
    return content


@pytest.mark.parametrize("entry", [17 * MIB, MIB, 8, 2**64 - MIB])
def test_l1_of_16_mib_that_names_one_place_costs_its_size(entry: int) -> None:
    """One table in a hole, L1 itself, the header, nowhere."""
    content = with_big_l1(entry)

    async def use() -> None:
        meter = Meter(MemoryStorage(content))
        async with opened(meter) as disk:
            assert meter.bytes_read <= 16 * MIB + 64
            for pos in (0, 1 << 61, disk.size - 512):
                if entry == 17 * MIB:
                    assert await disk.pread(512, pos) == bytes(512)
                else:
                    with pytest.raises(CorruptTable):
                        await disk.pread(512, pos)
                with pytest.raises(CorruptTable):
                    await disk.pwrite(b"x", pos)
            assert meter.bytes_read <= 17 * MIB
            assert meter.changes == 0

    with cheap():
        asyncio.run(use())


SPREAD = 1 << 50
"""Bytes of a file that is all hole but for its beginning."""


def spread_tables(n: int) -> array[int]:
    """Places for ``n`` tables of 16 MiB that lie far from each other, in no order."""
    step = SPREAD // n & -MIB
    places = [17 * MIB, *(i * step - 32 * MIB for i in range(2, n + 1))]
    Random(1).shuffle(places)
    return array("Q", places)


def huge(name: str, n: int, features: int = 0) -> SparseBytes:
    """L1 of ``n`` entries, and one table at most that holds anything."""
    file_size = 3 * n * MIB + 100 * MIB
    l1, l2 = array("Q", [17 * MIB]), array("Q")
    if name == "one-table":
        l1 *= n
    elif name == "one-table-of-nonsense":
        l1, l2 = l1 * n, array("Q", [8]) * n
    elif name == "nonsense":
        l1 = array("Q", [8, MIB, 2**64 - MIB, 2**63]) * (n // 4)
    elif name == "spread":
        l1, file_size = spread_tables(n), SPREAD
    elif name == "spread-in-pairs":
        places = spread_tables(n // 2)
        l1, file_size = places + array("Q", [place + 3 * MIB for place in places]), SPREAD
    elif name == "overlapping":
        l1 = array("Q", [(17 + i) * MIB for i in range(n)])
    elif name == "one-cluster":
        l2 = array("Q", [40 * MIB]) * n
    elif name == "data-spread":
        l2, file_size = array("Q", [place * 64 for place in spread_tables(n)]), SPREAD * 64
    content = image(
        1 << 62, cluster_size=MIB, table_size=16, file_size=file_size, features=features
    )
    content.write(l1.tobytes(), MIB)
    content.write(l2.tobytes(), 17 * MIB)
    return content


HUGE: dict[str, Callable[[int], int]] = {  # corruptions for n entries
    "one-table": lambda n: (n - 1) * 16,
    "one-table-of-nonsense": lambda n: (n - 1) * 16 + n,
    "nonsense": lambda n: n,
    "spread": lambda n: 1,
    "spread-in-pairs": lambda n: n // 2 * 13 + 1,
    "overlapping": lambda n: (n - 1) * 15,
    "one-cluster": lambda n: n - 1,
    "data-spread": lambda n: 1,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HUGE)
def test_check_of_l1_of_16_mib_takes_little_time(name: str) -> None:
    content = huge(name, BIG)

    async def use() -> None:
        async with opened(Meter(MemoryStorage(content)), "r") as disk:
            began = time.process_time()
            result = await disk.check()
            assert time.process_time() - began <= SECONDS
            assert result.corruptions == HUGE[name](BIG)
            assert result.cut_short is ("spread" in name)

    asyncio.run(use())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HUGE)
def test_repair_at_open_of_l1_of_16_mib_takes_little_time(name: str) -> None:
    meter = Meter(MemoryStorage(huge(name, BIG, Features.NEED_CHECK)), room=1 << 40)

    async def use() -> None:
        async with opened(meter):
            assert name == "nonsense"

    began = time.process_time()
    with nullcontext() if name == "nonsense" else pytest.raises(FormatError, match="repaired"):
        asyncio.run(use())
    assert time.process_time() - began <= SECONDS
    assert meter.closed


@pytest.mark.parametrize("name", HUGE)
def test_check_of_l1_of_2_mib_takes_little_memory(name: str) -> None:
    content = huge(name, BIG // 8)

    async def use() -> None:
        async with opened(Meter(MemoryStorage(content)), "r") as disk:
            assert (await disk.check()).corruptions >= 1 or name.endswith("spread")

    with cheap(MEMORY // 2):
        asyncio.run(use())


@pytest.mark.parametrize("name", ["one-table", "spread"])
def test_extents_of_l1_of_16_mib_are_found_in_little_time(name: str) -> None:
    content = huge(name, BIG)

    async def use() -> None:
        async with opened(Meter(MemoryStorage(content)), "r") as disk:
            began = time.process_time()
            (extent,) = await first_extents(disk, 2)
            assert time.process_time() - began <= SECONDS
            assert extent.length == disk.size

    asyncio.run(use())


@pytest.mark.parametrize("entry", [256 * KIB + 64 * KIB, 64 * KIB])
def test_check_and_repair_of_l1_that_names_one_place_is_bounded(entry: int) -> None:
    """Copying the table for each of the entries would take 1 GiB."""
    content = image(8 * TIB, cluster_size=64 * KIB, table_size=4, l2={320 * KIB: {0: 576 * KIB}})
    content.resize(640 * KIB)
    content.write(array("Q", [entry]).tobytes() * 4096, 64 * KIB)

    async def use() -> None:
        meter = Meter(MemoryStorage(content), room=1 << 40)
        async with opened(meter) as disk:
            result = await disk.check()
            assert result.corruptions >= 4095
            repaired = await disk.check(repair=True)
            assert repaired.corruptions < result.corruptions
        assert meter.bytes_written <= 128 * MIB

    with cheap(160 * MIB):  # the disk is in memory too
        asyncio.run(use())


def test_repair_at_open_of_an_image_that_cannot_be_repaired_is_bounded() -> None:
    content = image(64 * TIB, cluster_size=64 * KIB, table_size=4, features=Features.NEED_CHECK)
    content.resize(640 * KIB)
    content.write(array("Q", [320 * KIB]).tobytes() * 32768, 64 * KIB)

    async def use() -> None:
        meter = Meter(MemoryStorage(content), room=1 << 40)
        with pytest.raises(FormatError, match="cannot be repaired"):
            await opened(meter)
        assert meter.closed
        assert meter.bytes_written <= 128 * MIB

    asyncio.run(use())


# -------------------------------------------------------------------------- holes


def tables_in_holes() -> SparseBytes:
    """16 TiB of file, and 4096 tables that all lie in one hole."""
    step = 16 * TIB // 4096
    content = image(8 * TIB, cluster_size=64 * KIB, table_size=4, file_size=16 * TIB)
    places = array("Q", [(i + 1) * step - 512 * KIB for i in range(4096)])
    content.write(places.tobytes(), 64 * KIB)
    return content


def test_file_of_16_tib_with_every_table_in_a_hole_is_checked_without_reading_it() -> None:
    async def use() -> None:
        meter = Meter(MemoryStorage(tables_in_holes()))
        async with opened(meter) as disk:
            result = await disk.check()
            assert (result.corruptions, result.allocated_clusters) == (0, 0)
            assert result.leaks > 1 << 27
            assert meter.bytes_read < 4 * MIB
            assert (await disk.check(repair=True)).ok
            await disk.pwrite(b"here", 7 * TIB)
            (extent,) = await disk.block_status(7 * TIB, 4)
            assert extent.kind == "data"

    with cheap():
        asyncio.run(use())


def test_file_of_16_tib_with_every_table_in_a_hole_is_walked_table_by_table() -> None:
    async def use() -> None:
        meter = Meter(MemoryStorage(tables_in_holes()))
        async with opened(meter, "r") as disk:
            (extent,) = await first_extents(disk, 10)
            assert extent.length == 8 * TIB
            assert meter.calls < 9_000

    with cheap():
        asyncio.run(use())


async def test_block_status_of_a_huge_range_gives_the_loop_turns_and_stays_small() -> None:
    """Half the entries are zeroes, so no two neighbours are alike and no hole helps."""
    content = image(1 << 40, cluster_size=MIB, table_size=1, l1=dict.fromkeys(range(8), 2 * MIB))
    content.write(struct.pack("<QQ", 1, 0) * (MIB // 16), 2 * MIB)
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn) if working else None

    working = True
    async with opened(Meter(MemoryStorage(content)), "r") as disk:
        asyncio.get_running_loop().call_soon(turn)
        runs = await disk.block_status(0, 20_000 * MIB)
        working = False
        await asyncio.sleep(0)
    assert len(runs) == 20_000
    assert turns > 100


async def test_discard_and_zero_writes_of_huge_ranges_can_be_cancelled() -> None:
    content = image(1 << 62, cluster_size=MIB, table_size=16, file_size=40 * MIB)
    content.write(struct.pack("<Q", 17 * MIB) * 64, MIB)
    content.write(struct.pack("<Q", 1) * (16 * MIB // 8), 17 * MIB)
    async with opened(Meter(MemoryStorage(content))) as disk:
        for work in (disk.discard(disk.size, 0), disk.write_zeroes(1 << 45, 0)):
            task = asyncio.create_task(cast("Any", work))
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


# ------------------------------------------------------------------- large and sound


def test_open_of_a_valid_image_of_64_tib_reads_the_header_and_l1() -> None:
    content = image(64 * TIB, cluster_size=64 * KIB, table_size=4, file_size=640 * KIB)
    content.write(array("Q", [320 * KIB]).tobytes(), 64 * KIB)

    async def use() -> None:
        meter = Meter(MemoryStorage(content))
        async with opened(meter) as disk:
            assert (meter.calls, meter.bytes_read) == (2, 64 + 256 * KIB)
            assert await disk.pread(100, 63 * TIB) == bytes(100)
            await disk.pwrite(b"far", 64 * TIB - 3)
            assert await disk.pread(3, 64 * TIB - 3) == b"far"
            assert meter.bytes_read < 300 * KIB
            assert (await first_extents(disk, 3))[0].length == 64 * TIB - 64 * KIB

    with cheap(4 * MIB):
        asyncio.run(use())


async def test_file_that_cannot_grow_is_an_error_of_ours() -> None:
    """The next cluster would end past 2**63, where no file ends."""
    directory = Path("/dev/shm")
    if not directory.is_dir():
        pytest.skip("there is no file system here that keeps such files")
    path = directory / f"qedasync-hostile-{os.getpid()}.qed"
    try:
        write_file(path, image(8 * MIB))
        try:
            os.truncate(path, 2**63 - CLUSTER)
        except OSError:
            pytest.skip("there is no file system here that keeps such files")
        for kind in ("posix", "aiofiles"):
            async with qedasync.open(path, "r+", storage=kind) as disk:
                for call in (disk.pwrite(b"x", 0), disk.write_zeroes(MIB, 0)):
                    with pytest.raises(StorageError):
                        await call
                assert await disk.pread(10, 0) == bytes(10)
    finally:
        path.unlink(missing_ok=True)
