"""Check and repair: every kind of damage, counted as QEMU counts it, and mended without loss."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from errno import EIO, ENOSPC
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qedasync
from qedasync.check import (
    Action,
    ActionKind,
    CheckResult,
    Finding,
    FindingKind,
    LeakRange,
    check_image,
)
from qedasync.check.lanes import Judge, as_bytes, as_lanes, count_breaks, indices_of, without
from qedasync.check.marks import Flags, Marks, windows
from qedasync.check.result import LIST_LIMIT
from qedasync.check.scan import Scanner
from qedasync.check.tables import sort_offsets
from qedasync.engine.core import Engine, EngineOptions
from qedasync.errors import ImageClosed, ImageFailed, ReadOnly, StorageError
from qedasync.events import Event
from qedasync.format.geometry import Geometry
from qedasync.format.header import Features
from qedasync.storage.base import Storage
from qedasync.storage.crash import CrashPoint, CrashState, crash_points
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.recorder import RecorderStorage
from tests.helpers import qemu
from tests.helpers.naive_check import Naive, no_worse
from tests.quirks.images import CLUSTER, KIB, MIB, image, opened, tables_at, write_file

TABLE = tables_at()
SECOND = TABLE + 2 * CLUSTER
DATA = TABLE + 4 * CLUSTER
A, B, C, D = (DATA + n * CLUSTER for n in range(4))
SPAN = 1024 * CLUSTER
"""Guest bytes of one L2 table."""

CONTENT = {
    offset: name * CLUSTER
    for offset, name in zip((A, B, C, D), (b"a", b"b", b"c", b"d"), strict=True)
}


def damaged(
    l1: dict[int, int] | None = None,
    l2: dict[int, dict[int, int]] | None = None,
    *,
    n_leaks: int = 0,
    **fields: int,
) -> SparseBytes:
    """An image of two tables and four data clusters, all used, with some entries changed."""
    tables = {TABLE: {0: A, 1: B}, SECOND: {0: C, 1: D}}
    for offset, entries in (l2 or {}).items():
        tables.setdefault(offset, {}).update(entries)
    file_size = DATA + (4 + n_leaks) * CLUSTER
    l1 = {0: TABLE, 1: SECOND} | (l1 or {})
    return image(2 * SPAN, l1=l1, l2=tables, data=CONTENT, file_size=file_size, **fields)


def overlapping_tables() -> SparseBytes:
    """The second half of the table at SECOND is the first of another, whose second is at A."""
    content = damaged(l1={2: SECOND + CLUSTER}, l2={TABLE: {0: 0, 1: 0}, SECOND: {1: 0, 512: B}})
    content.zero(A, CLUSTER)
    content.write(D.to_bytes(8, "little"), A)
    return content


@dataclass(frozen=True)
class Damage:
    """An image and what is wrong with it.

    Attributes:
        kinds: of the findings.
        leaks: clusters before a repair.
        qemu_agrees: whether QEMU counts the same leaks and fragments; it does not look into tables
            that share clusters.
        mended_leaks: leaks after a repair: those it makes, and those it leaves.
    """

    make: Callable[[], SparseBytes]
    corruptions: int
    kinds: set[FindingKind]
    leaks: int = 0
    mended_leaks: int = 0
    qemu_agrees: bool = True


INVALID, TWICE, TABLES = (
    {FindingKind.INVALID_ENTRY},
    {FindingKind.SHARED_CLUSTER},
    {FindingKind.SHARED_TABLE},
)
BEHIND = D + CLUSTER

DAMAGE = {
    "none": Damage(damaged, 0, set()),
    "zero-clusters": Damage(lambda: damaged(l2={TABLE: {5: 1, 6: 1}}), 0, set()),
    "l2-unaligned": Damage(lambda: damaged(l2={TABLE: {2: A + 512}}), 1, INVALID),
    "l2-low-bit": Damage(lambda: damaged(l2={TABLE: {2: A + 1}}), 1, INVALID),
    "l2-past-the-end": Damage(lambda: damaged(l2={TABLE: {2: BEHIND}}), 1, INVALID),
    "l2-huge": Damage(lambda: damaged(l2={TABLE: {2: 2**64 - CLUSTER}}), 1, INVALID),
    "l2-in-header": Damage(lambda: damaged(l2={TABLE: {2: 2}}), 1, INVALID),
    "l2-on-l1": Damage(lambda: damaged(l2={TABLE: {2: CLUSTER}}), 1, INVALID),
    "l2-lost": Damage(lambda: damaged(l2={TABLE: {1: 7}}), 1, INVALID, leaks=1, mended_leaks=1),
    "l1-unaligned": Damage(lambda: damaged(l1={2: TABLE + 8}), 1, INVALID),
    "l1-one": Damage(lambda: damaged(l1={2: 1}), 1, INVALID),
    "l1-past-the-end": Damage(lambda: damaged(l1={2: BEHIND}), 1, INVALID),
    "l1-half-in-the-file": Damage(
        lambda: damaged(l1={2: D}, l2={SECOND: {1: 0}}), 1, INVALID, leaks=1
    ),
    "l1-huge": Damage(lambda: damaged(l1={2: 2**64 - CLUSTER}), 1, INVALID),
    "l1-last": Damage(lambda: damaged(l1={1023: 8}), 1, INVALID),
    "data-twice": Damage(lambda: damaged(l2={TABLE: {7: A}}), 1, TWICE),
    "data-thrice": Damage(lambda: damaged(l2={TABLE: {7: A}, SECOND: {7: A}}), 2, TWICE),
    "data-on-own-table": Damage(lambda: damaged(l2={TABLE: {7: TABLE}}), 1, TWICE),
    "data-on-later-table": Damage(
        lambda: damaged(l2={TABLE: {7: SECOND + CLUSTER}}), 1, TWICE, qemu_agrees=False
    ),
    "table-twice": Damage(lambda: damaged(l1={2: TABLE}), 2, TABLES),
    "tables-overlap": Damage(
        # The second half of the table at SECOND is the first of this one.
        overlapping_tables,
        1,
        TABLES,
        mended_leaks=1,
        qemu_agrees=False,
    ),
    "all-at-once": Damage(
        lambda: damaged(
            l1={2: TABLE, 3: 1},
            l2={TABLE: {2: 3 * CLUSTER + 1, 3: B, 4: BEHIND + 8 * CLUSTER}},
            n_leaks=3,
        ),
        6,
        INVALID | TWICE | TABLES,
        leaks=3,
    ),
}
each_damage = pytest.mark.parametrize("name", DAMAGE)


@asynccontextmanager
async def engine_on(
    storage: Storage | SparseBytes, *, writable: bool = True
) -> AsyncIterator[Engine]:
    """The image in a storage, driven without the repair that an open for writing does."""
    if isinstance(storage, SparseBytes):
        storage = MemoryStorage(storage)
    engine = await Engine.open(storage, EngineOptions(writable=writable, need_check_timeout=0))
    try:
        yield engine
    finally:
        # The close of an image that has failed says so, and releases everything all the same.
        with suppress(ImageFailed) if engine.failure else nullcontext():
            await engine.close()


async def check(
    content: SparseBytes, *, repair: bool = False, max_pages: int = 1 << 16
) -> CheckResult:
    """Check, or repair, a file in memory."""
    async with engine_on(content) as engine:
        return await check_image(engine, repair=repair, max_pages=max_pages)


def clusters(ranges: tuple[LeakRange, ...], cluster_size: int = CLUSTER) -> set[int]:
    """The numbers of leaked clusters."""
    return {
        offset // cluster_size
        for leak in ranges
        for offset in range(leak.offset, leak.offset + leak.length, cluster_size)
    }


# ---------------------------------------------------------------- each damage


@each_damage
async def test_check_damage_is_counted_and_named(name: str) -> None:
    damage = DAMAGE[name]
    content = damage.make()
    before = bytes(content)
    result = await check(content)
    assert (result.corruptions, result.leaks, result.check_errors) == (
        damage.corruptions,
        damage.leaks,
        0,
    )
    assert {finding.kind for finding in result.findings} == damage.kinds
    assert result.ok is (damage.corruptions == 0)
    assert not result.repaired
    assert bytes(content) == before


@each_damage
async def test_repair_damage_is_mended_without_loss(name: str) -> None:
    damage = DAMAGE[name]
    content = damage.make()
    before = Naive(content.copy())
    result = await check(content, repair=True)
    assert (result.corruptions, result.check_errors) == (0, 0)
    assert result.corruptions_fixed == damage.corruptions
    assert result.leaks == damage.mended_leaks
    assert (await check(content)).to_dict() | {"findings": (), "actions": ()} == (
        result.to_dict()
        | {"findings": (), "actions": (), "repaired": False}
        | {"corruptions_fixed": 0, "leaks_fixed": 0}
    )
    no_worse(before, Naive(content))


@each_damage
async def test_repair_does_what_the_check_said_it_would(name: str) -> None:
    content = DAMAGE[name].make()
    planned = await check(content)
    done = await check(content, repair=True)
    assert done.actions == planned.actions
    assert done.findings == planned.findings
    assert done.repaired is bool(planned.actions)


@each_damage
@qemu.needs_qemu
async def test_check_counts_agree_with_qemu(name: str, tmp_path: Path) -> None:
    damage = DAMAGE[name]
    path = write_file(tmp_path / "before.qed", damage.make())
    ours, theirs = await check(damage.make()), qemu.check(path)
    assert ours.corruptions == theirs["corruptions"]
    if damage.qemu_agrees:
        assert ours.leaks == theirs["leaks"]
        assert ours.allocated_clusters == theirs["allocated-clusters"]
        assert ours.fragmented_clusters == theirs.get("fragmented-clusters", 0)
    assert ours.total_clusters == theirs["total-clusters"]


@each_damage
@qemu.needs_qemu
async def test_repair_satisfies_qemu(name: str, tmp_path: Path) -> None:
    content = DAMAGE[name].make()
    result = await check(content, repair=True)
    theirs = qemu.check(write_file(tmp_path / "after.qed", content))
    assert (theirs["corruptions"], theirs["check-errors"]) == (0, 0)
    assert theirs["leaks"] == result.leaks


@qemu.needs_qemu
async def test_check_images_of_qemu_agree_with_qemu(tmp_path: Path) -> None:
    path = tmp_path / "made.qed"
    qemu.create(path, 8 * MIB, cluster_size=4096, table_size=2)
    qemu.io(path, "write -P 1 0 64k", "write -P 2 7M 20k", "write -z 1M 8k", "write -P 3 200k 4k")
    async with qedasync.open(path) as disk:
        ours = await disk.check()
    theirs = qemu.check(path)
    assert ours.clean
    assert not ours.actions
    assert ours.allocated_clusters == theirs["allocated-clusters"]
    assert ours.fragmented_clusters == theirs.get("fragmented-clusters", 0)
    assert ours.total_clusters == theirs["total-clusters"]
    assert ours.image_end_offset == path.stat().st_size


# ------------------------------------------------------------------- details


async def test_check_finding_says_where_it_is() -> None:
    result = await check(damaged(l2={SECOND: {9: A + 5}}))
    assert result.findings == (
        Finding(
            kind=FindingKind.INVALID_ENTRY,
            level=2,
            l1_index=1,
            l2_index=9,
            value=A + 5,
            pos=SPAN + 9 * CLUSTER,
            text=f"L2 entry 9 of table 1 is {A + 5:#x}, where no data cluster can be",
        ),
    )
    assert result.actions == (Action(ActionKind.CLEAR_ENTRY, 1, 9, A + 5),)


async def test_check_leaks_inside_and_at_the_end_are_two_ranges() -> None:
    result = await check(damaged(l2={TABLE: {1: 0}}, n_leaks=3))
    assert result.leaks == 4
    assert result.leak_ranges == (LeakRange(B, CLUSTER), LeakRange(BEHIND, 3 * CLUSTER))
    assert result.image_end_offset == BEHIND
    assert result.ok
    assert not result.clean


async def test_repair_cuts_the_end_and_reports_the_leaks_inside() -> None:
    content = damaged(l2={TABLE: {1: 0}}, n_leaks=3)
    result = await check(content, repair=True)
    assert (result.leaks, result.leaks_fixed) == (1, 3)
    assert result.leak_ranges == (LeakRange(B, CLUSTER),)
    assert content.size == BEHIND


async def test_check_part_of_a_cluster_at_the_end_is_no_leak() -> None:
    content = damaged()
    content.resize(BEHIND + CLUSTER - 512)
    assert (await check(content)).clean
    content.resize(BEHIND + CLUSTER - 511)  # the last sector counts as whole
    assert (await check(content)).leaks == 1


async def test_check_header_of_many_clusters_is_no_leak_and_no_place_for_data() -> None:
    content = image(
        MIB,
        l1={0: 8 * CLUSTER},
        l2={8 * CLUSTER: {0: 3 * CLUSTER}},
        header_size=5,
        l1_table_offset=5 * CLUSTER,
    )
    result = await check(content)
    assert (result.corruptions, result.leaks) == (1, 1)


async def test_check_table_size_1_is_checked_as_any() -> None:
    content = image(MIB, table_size=1, l1={0: 2 * CLUSTER}, l2={2 * CLUSTER: {0: 3 * CLUSTER}})
    content.resize(4 * CLUSTER)
    assert (await check(content)).clean


async def test_check_more_clusters_than_qemu_can_count_finds_no_leaks() -> None:
    content = image(
        64 * MIB,
        table_size=16,
        l1={0: 17 * CLUSTER},
        l2={17 * CLUSTER: {i: (33 + i) * CLUSTER for i in range(5000)}},
        file_size=5033 * CLUSTER,
    )
    result = await check(content)
    assert result.clean
    assert (result.allocated_clusters, result.fragmented_clusters) == (5000, 0)


async def test_check_tables_past_the_end_of_the_disk_count() -> None:
    result = await check(damaged(l1={900: TABLE + 1}, image_size=CLUSTER))
    assert result.corruptions == 1
    assert result.allocated_clusters == 4 > result.total_clusters == 1


async def test_repair_entry_past_the_end_of_the_disk_is_cleared_on_disk() -> None:
    content = damaged(l1={900: TABLE + 1}, image_size=CLUSTER)
    assert (await check(content, repair=True)).corruptions_fixed == 1
    assert (await check(content)).corruptions == 0


async def test_check_fragments_are_counted_per_table_and_over_gaps() -> None:
    result = await check(damaged(l2={TABLE: {0: B, 1: 1, 2: C, 3: A}, SECOND: {0: D, 1: 0}}))
    assert (result.allocated_clusters, result.fragmented_clusters) == (4, 1)


async def test_repair_table_copy_goes_its_own_way_when_written() -> None:
    storage = MemoryStorage(damaged(l1={2: TABLE}, image_size=3 * SPAN))
    async with opened(storage) as disk:
        assert (await disk.check(repair=True)).corruptions_fixed == 2
        for pos in (0, 2 * SPAN):
            assert await disk.pread(2 * CLUSTER, pos) == b"a" * CLUSTER + b"b" * CLUSTER
        await disk.pwrite(b"x", 2 * SPAN)
        await disk.pwrite(b"y", 2 * SPAN + 5 * CLUSTER)
        assert await disk.pread(1, 0) == b"a"
        assert await disk.pread(1, 5 * CLUSTER) == b"\0"
        assert await disk.pread(1, 2 * SPAN + 5 * CLUSTER) == b"y"
        assert (await disk.check()).clean
    assert (await check(storage.content)).clean


async def test_repair_doubly_used_zeroes_need_no_copy() -> None:
    content = damaged(l2={TABLE: {7: A}})
    content.zero(A, CLUSTER)
    size = content.size
    assert (await check(content, repair=True)).corruptions_fixed == 1
    assert content.size == size
    assert Naive(content).mapped[0] == bytes(CLUSTER)
    assert 7 * CLUSTER not in Naive(content).mapped  # ZERO


async def test_repair_cluster_of_several_pieces_is_copied_whole() -> None:
    size = 2 * MIB
    table, data = 2 * size, 3 * size
    content = image(
        4 * size,
        cluster_size=size,
        table_size=1,
        l1={0: table},
        l2={table: {0: data, 1: data}},
        data={data + MIB: b"late"},
        file_size=4 * size,
    )
    before = Naive(content.copy())
    assert (await check(content, repair=True)).corruptions_fixed == 1
    no_worse(before, Naive(content))
    assert content.size == 5 * size


async def test_repair_new_clusters_are_used_by_the_writes_that_follow() -> None:
    storage = MemoryStorage(damaged(l2={TABLE: {7: A}}, n_leaks=2))
    async with opened(storage) as disk:
        await disk.check(repair=True)
        await disk.pwrite(b"n" * CLUSTER, 20 * CLUSTER)
        assert (await disk.check()).clean
        assert storage.size == BEHIND + 2 * CLUSTER


async def test_repair_reads_after_it_see_the_mended_mapping() -> None:
    storage = MemoryStorage(damaged(l2={TABLE: {2: BEHIND}}))
    async with opened(storage) as disk:
        with pytest.raises(qedasync.CorruptTable):
            await disk.pread(1, 2 * CLUSTER)
        assert await disk.pread(1, 0) == b"a"
        await disk.check(repair=True)
        assert await disk.pread(1, 2 * CLUSTER) == b"\0"
        assert await disk.pread(1, 0) == b"a"


async def test_check_result_is_json() -> None:
    result = await check(DAMAGE["all-at-once"].make())
    read = json.loads(json.dumps(result.to_dict()))
    assert read["corruptions"] == 6
    assert read["leak_ranges"] == [{"offset": BEHIND, "length": 3 * CLUSTER}]
    assert {finding["kind"] for finding in read["findings"]} == {
        "invalid-entry",
        "shared-table",
        "shared-cluster",
    }


async def test_check_damage_everywhere_fills_lists_up_to_their_limit() -> None:
    table_size = 16  # 8192 entries
    table = 17 * CLUSTER
    bad = {i: 12345 for i in range(0, 4000, 2)} | {i: table for i in range(4001, 8000, 2)}
    content = image(64 * MIB, table_size=table_size, l1={0: table}, l2={table: bad})
    result = await check(content)
    assert result.corruptions == 4000
    assert len(result.findings) == LIST_LIMIT
    assert result.findings_omitted == 4000 - LIST_LIMIT
    assert len(result.actions) + result.actions_omitted == 4000
    repaired = await check(content, repair=True)
    assert (repaired.corruptions_fixed, repaired.ok) == (4000, True)


async def test_repair_absurdly_many_copies_are_made_in_portions() -> None:
    size = 64 * KIB
    table = 2 * size
    content = image(
        MIB,
        cluster_size=size,
        table_size=1,
        l1={0: table},
        l2={table: dict.fromkeys(range(2000), 3 * size)},
        file_size=4 * size,
        features=Features.NEED_CHECK,
    )
    first = await check(content, repair=True)
    assert (first.corruptions, first.corruptions_fixed) == (1999 - 1024, 1024)
    assert first.need_check
    second = await check(content, repair=True)
    assert (second.corruptions, second.need_check) == (0, False)


async def test_check_table_named_by_all_of_l1_ends_and_counts() -> None:
    content = damaged(l1=dict.fromkeys(range(2, 200), TABLE))
    result = await check(content)
    assert result.corruptions == 2 * 198
    assert (await check(content, repair=True)).ok


# ------------------------------------------------------------ image at random

SPOTS = 24
junk = st.sampled_from([1, 2, 511, CLUSTER, 2 * CLUSTER, 2**63, 2**64 - CLUSTER, 2**64 - 1])


@st.composite
def wild_images(draw: st.DrawFn) -> SparseBytes:
    """Images whose entries name what they like."""
    table_size = draw(st.sampled_from([1, 2]))
    stride = draw(st.sampled_from([1, 37, 513]))
    places = [(1 + table_size + i * stride) * CLUSTER for i in range(SPOTS)]
    value = st.sampled_from(places) | junk | st.sampled_from(places).map(lambda p: p + CLUSTER)
    l1 = draw(st.dictionaries(st.integers(0, 7) | st.just(500), value, max_size=5))
    l2 = {}
    for offset in set(l1.values()) & set(places):
        entries = draw(st.dictionaries(st.integers(0, 511 * table_size), value, max_size=8))
        if draw(st.booleans()):
            start = draw(st.sampled_from(places))
            entries |= {i: start + i * CLUSTER for i in range(512)}
        l2[offset] = entries
    data = {
        place: place.to_bytes(8, "big") * (CLUSTER // 8)
        for place in places[::2]
        if not any(offset <= place < offset + 2 * CLUSTER for offset in l1.values())
    }
    last = places[-1] + draw(st.sampled_from([0, 1, 600])) * CLUSTER
    features = draw(st.sampled_from([0, Features.NEED_CHECK]))
    size = draw(st.sampled_from([CLUSTER, 8 * MIB]))
    return image(
        size, table_size=table_size, l1=l1, l2=l2, data=data, file_size=last, features=features
    )


@settings(max_examples=30)
@given(content=wild_images(), max_pages=st.sampled_from([2, 3, 1000]))
async def test_check_random_image_agrees_with_the_naive_check(
    content: SparseBytes, max_pages: int
) -> None:
    naive = Naive(content.copy())
    result = await check(content, max_pages=max_pages)
    assert result.corruptions == naive.corruptions
    assert result.allocated_clusters == naive.allocated
    assert clusters(result.leak_ranges) == naive.leaks
    assert result.leaks == len(naive.leaks)
    assert result.image_end_offset == (max(naive.used) + 1) * CLUSTER
    ends = {leak.offset + leak.length for leak in result.leak_ranges}
    assert ends.isdisjoint(leak.offset for leak in result.leak_ranges)  # joined over windows
    counted = {FindingKind.INVALID_ENTRY, FindingKind.SHARED_CLUSTER, FindingKind.SHARED_TABLE}
    assert bool(result.findings) is bool(naive.corruptions)
    assert {finding.kind for finding in result.findings} <= counted


@settings(max_examples=30)
@given(content=wild_images(), max_pages=st.sampled_from([2, 3, 1000]))
async def test_repair_random_image_is_sound_and_nothing_is_lost(
    content: SparseBytes, max_pages: int
) -> None:
    before = Naive(content.copy())
    result = await check(content, repair=True, max_pages=max_pages)
    after = Naive(content)
    assert (result.corruptions, after.corruptions) == (0, 0)
    assert result.leaks == len(after.leaks)
    assert not result.need_check
    assert not after.need_check
    no_worse(before, after)


FAR = [DATA + n * MIB * 2 for n in range(1, 30)]
"""Clusters that are all on pages of their own."""


async def test_check_double_seen_before_the_window_shrinks_is_counted_once() -> None:
    entries = dict(enumerate([FAR[-1], FAR[-1], *FAR]))
    content = damaged(l2={TABLE: entries})
    content.resize(FAR[-1] + CLUSTER)
    for max_pages in (2, 5, 1000):
        result = await check(content, max_pages=max_pages)
        assert result.corruptions == 2
        assert [finding.l2_index for finding in result.findings] == [1, 2 + len(FAR) - 1]
        assert result.findings_omitted == 0


async def test_repair_shared_table_is_copied_once_however_many_windows() -> None:
    content = damaged(l1={2: TABLE}, l2={TABLE: dict(enumerate(FAR))})
    content.resize(FAR[-1] + CLUSTER)
    result = await check(content, repair=True, max_pages=2)
    assert [action.kind for action in result.actions].count(ActionKind.COPY_TABLE) == 1
    assert content.size == FAR[-1] + CLUSTER + 2 * CLUSTER  # all data is zeroes
    assert result.ok


async def test_check_run_of_clusters_over_l1_is_found_out() -> None:
    l1, table = 300 * CLUSTER, 310 * CLUSTER
    content = image(
        4 * MIB,
        l1_table_offset=l1,
        l1={0: table},
        l2={table: {i: (1 + i) * CLUSTER for i in range(512)}},
        file_size=600 * CLUSTER,
    )
    result = await check(content)
    assert result.corruptions == Naive(content).corruptions == 4
    kinds = [finding.kind for finding in result.findings]
    assert kinds == 2 * [FindingKind.INVALID_ENTRY] + 2 * [FindingKind.SHARED_CLUSTER]


async def test_repair_tail_that_an_unread_shared_table_may_need_stays() -> None:
    size = 64 * MIB  # two tables can be copied here, not three
    at = [(3 + i) * size for i in range(6)]
    content = image(
        0,
        cluster_size=size,
        table_size=2,
        l1={i: offset for i, offset in enumerate(at[:4])},
        l2={at[4]: {0: at[5]}},
        file_size=at[5] + size,
    )
    result = await check(content, repair=True)
    assert (result.corruptions, result.leaks_fixed) == (0, 0)  # it lies alone now
    assert content.size >= at[5] + size


# ----------------------------------------------------------------- NEED_CHECK


def dirty(content: SparseBytes | None = None) -> SparseBytes:
    """An image with NEED_CHECK set."""
    content = content or DAMAGE["all-at-once"].make()
    content.write(bytes([Features.NEED_CHECK]), 16)
    return content


async def test_check_leaves_need_check_as_it_is() -> None:
    content = dirty(damaged())
    assert Naive(content).need_check
    async with engine_on(content, writable=False) as engine:
        result = await check_image(engine)
    assert result.need_check
    assert result.actions == (Action(ActionKind.CLEAR_NEED_CHECK),)
    assert Naive(content).need_check


async def test_repair_clears_need_check_last_and_after_a_flush() -> None:
    storage = FaultStorage(MemoryStorage(dirty()))
    async with engine_on(storage) as engine:
        storage.calls.clear()
        result = await check_image(engine, repair=True)
        changes = [call for call in storage.calls if call.op not in ("read", "next_data")]
    assert not result.need_check
    assert result.actions[-1] == Action(ActionKind.CLEAR_NEED_CHECK)
    assert [call.event for call in changes].count(Event.HEADER_UPDATE) == 1
    assert [call.op for call in changes[-3:]] == ["flush", "write", "flush"]
    assert changes[-2].event is Event.HEADER_UPDATE


async def test_repair_keeps_need_check_while_a_table_cannot_be_read() -> None:
    content = dirty(damaged(l2={TABLE: {2: 7}}))
    storage = FaultStorage(MemoryStorage(content))
    async with engine_on(storage) as engine:
        fault = Fault("error", event=Event.CHECK_LOAD, op="read", call=3, once=False)
        storage.add(fault)
        result = await check_image(engine, repair=True)
        assert result.check_errors >= 1
        assert result.leaks == 0
        assert result.need_check
        assert not engine.need_check.may_clear
        storage.clear()
    assert Naive(content).need_check


async def test_check_unreadable_table_is_counted_once_and_leaks_are_not() -> None:
    storage = FaultStorage(MemoryStorage(damaged(l2={TABLE: {2: 7}}, n_leaks=2)), inline=False)
    async with engine_on(storage) as engine:
        n_reads = await _reads_of_a_check(engine, storage)
        storage.add(Fault("error", event=Event.CHECK_LOAD, op="read", call=n_reads))
        result = await check_image(engine)  # the last one read is the second table
    assert (result.check_errors, result.corruptions, result.leaks) == (1, 1, 0)
    assert result.leak_ranges == ()
    errors = [f for f in result.findings if f.kind is FindingKind.READ_ERROR]
    assert [(f.level, f.l1_index, f.value) for f in errors] == [(2, 1, SECOND)]
    assert not any(action.kind is ActionKind.CUT_TAIL for action in result.actions)


async def _reads_of_a_check(engine: Engine, storage: FaultStorage) -> int:
    before = storage.count("read", Event.CHECK_LOAD)
    await check_image(engine)
    return storage.count("read", Event.CHECK_LOAD) - before


async def test_check_unreadable_l1_is_an_error_of_level_1() -> None:
    storage = FaultStorage(MemoryStorage(damaged()))
    async with engine_on(storage) as engine:
        storage.add(Fault("error", event=Event.CHECK_LOAD, op="read", once=False))
        result = await check_image(engine)
    assert (result.check_errors, result.leaks, result.findings[0].level) == (1, 0, 1)


# ------------------------------------------------------------ faults, crashes


def sweeping(n_leaks: int = 2) -> SparseBytes:
    """An image in which a repair takes every kind of step."""
    return dirty(
        damaged(
            l1={2: TABLE, 3: 1},
            l2={TABLE: {2: 9, 3: B, 4: BEHIND + n_leaks * CLUSTER, 600: C}, SECOND: {700: 3}},
            n_leaks=n_leaks,
        )
    )


@pytest.mark.parametrize("action", ["error", "error-after", "torn"])
@pytest.mark.parametrize("errno", [EIO, ENOSPC])
async def test_repair_any_step_fails_leaves_an_image_no_worse(action: str, errno: int) -> None:
    before = Naive(sweeping())
    storage = FaultStorage(MemoryStorage(sweeping()))
    async with engine_on(storage) as engine:
        storage.calls.clear()
        await check_image(engine, repair=True)
        steps = [call for call in storage.calls if call.op in ("write", "flush", "truncate")]
    assert len(steps) > 15
    for op in ("write", "flush", "truncate"):
        for n in range(1, sum(call.op == op for call in steps) + 1):
            if action == "torn" and op != "write":
                continue
            await _fail_once(Fault(action, op=op, call=n, errno=errno), before)  # type: ignore[arg-type]


async def _fail_once(fault: Fault, before: Naive) -> None:
    memory = MemoryStorage(sweeping())
    storage = FaultStorage(memory)
    engine = await Engine.open(storage, EngineOptions(writable=True))
    storage.add(fault)
    with pytest.raises(StorageError) as caught:
        await check_image(engine, repair=True)
    assert caught.value.errno == fault.errno
    no_worse(before, Naive(memory.content.copy()))
    content = memory.content.copy()
    assert (await check(content, repair=True)).ok  # the next repair ends what this one began
    no_worse(before, Naive(content))
    if engine.failure is None and not engine.need_check.is_set:
        assert Naive(memory.content.copy()).corruptions == 0
    with suppress(ImageFailed):
        await engine.close()


async def test_repair_any_read_fails_leaves_an_image_no_worse() -> None:
    before = Naive(sweeping())
    n = 1
    while True:
        memory = MemoryStorage(sweeping())
        storage = FaultStorage(memory)
        async with engine_on(storage) as engine:
            storage.add(Fault("error", op="read", call=n))
            with suppress(StorageError):
                await check_image(engine, repair=True)
            no_worse(before, Naive(memory.content.copy()))
            if not storage.fired:
                break
            storage.clear()
        n += 1
    assert n > 20


@pytest.mark.parametrize("n_leaks", [0, 2])
async def test_repair_power_loss_at_any_moment_leaves_an_image_no_worse(n_leaks: int) -> None:
    base = sweeping(n_leaks)
    before = Naive(base.copy())
    recorder = RecorderStorage(MemoryStorage(base.copy()))
    async with engine_on(recorder) as engine:
        await check_image(engine, repair=True)
    seen = set()
    for point in crash_points(recorder.log, base):
        for state in _crash_states(point):
            content = state.content()
            if bytes(content) in seen:
                continue
            seen.add(bytes(content))
            no_worse(before, Naive(content.copy()))
            assert (await check(content, repair=True)).ok, state
            no_worse(before, Naive(content))
    assert len(seen) > 40


def _crash_states(point: CrashPoint) -> Iterator[CrashState]:
    """Nothing, everything, and all but one of what may or may not have reached the disk."""
    everything = frozenset(range(len(point.optional)))
    yield point.state(())
    yield point.state(everything)
    for number in everything:
        yield point.state(everything - {number})
    if everything:
        yield point.random_state(Random(point.cut))  # with torn writes


async def test_repair_cancelled_anywhere_leaves_an_image_that_goes_on() -> None:
    before = Naive(sweeping())
    storage = FaultStorage(MemoryStorage(sweeping()))
    async with engine_on(storage) as engine:
        n_before = len(storage.calls)
        await check_image(engine, repair=True)
        n_calls = sum(call.op != "read" for call in storage.calls[n_before:])
    for op in ("write", "flush", "truncate"):
        for n in range(1, n_calls, 2):
            memory = MemoryStorage(sweeping(), inline=False)
            storage = FaultStorage(memory)
            async with engine_on(storage) as engine:
                task = asyncio.create_task(check_image(engine, repair=True))
                storage.add(Fault("cancel", op=op, call=n, callback=task.cancel))
                await asyncio.wait([task])
                if not task.cancelled():
                    break
                no_worse(before, Naive(memory.content.copy()))
                storage.clear()
                assert (await check_image(engine, repair=True)).ok
            no_worse(before, Naive(memory.content.copy()))


# ---------------------------------------------------------------- concurrency


async def test_check_reads_and_writes_in_place_go_on_and_allocating_writes_wait() -> None:
    storage = FaultStorage(MemoryStorage(damaged()))
    async with opened(storage) as disk:
        storage.add(Fault("pause", event=Event.CHECK_LOAD))
        checking = asyncio.create_task(disk.check())
        await storage.wait_paused()
        assert await disk.pread(1, 0) == b"a"
        await disk.pwrite(b"z", 0)
        allocating = asyncio.create_task(disk.pwrite(b"n", 9 * CLUSTER))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not allocating.done()
        storage.resume()
        assert (await checking).clean
        await allocating
        assert (await disk.check()).clean


async def test_repair_everybody_waits_for_its_end() -> None:
    storage = FaultStorage(MemoryStorage(DAMAGE["data-twice"].make()))
    async with opened(storage) as disk:
        storage.add(Fault("pause", event=Event.CHECK_COPY, op="write"))
        repairing = asyncio.create_task(disk.check(repair=True))
        await storage.wait_paused()
        reading = asyncio.create_task(disk.pread(1, 0))
        checking = asyncio.create_task(disk.check())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reading.done()
        storage.resume()
        assert (await repairing).corruptions_fixed == 1
        assert await reading == b"a"
        assert (await checking).clean


async def test_check_close_waits_for_it() -> None:
    storage = FaultStorage(MemoryStorage(damaged()))
    disk = await opened(storage, "r").__aenter__()
    storage.add(Fault("pause", event=Event.CHECK_LOAD))
    checking = asyncio.create_task(disk.check())
    await storage.wait_paused()
    closing = asyncio.create_task(disk.close())
    await asyncio.sleep(0)
    storage.resume()
    assert (await checking).clean
    await closing


async def test_check_gives_the_loop_turns_and_says_how_far_it_is() -> None:
    table_size, n = 16, 8192
    tables = {(17 + 16 * t) * CLUSTER: t for t in range(4)}
    data = (17 + 64) * CLUSTER
    order = list(range(4 * n))
    Random(1).shuffle(order)
    content = image(
        128 * MIB,
        table_size=table_size,
        l1={t: offset for offset, t in tables.items()},
        l2={
            offset: {i: data + order[t * n + i] * CLUSTER for i in range(n)}
            for offset, t in tables.items()
        },
        file_size=data + 4 * n * CLUSTER,
    )
    turns = 0
    told: list[tuple[int, int]] = []

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with engine_on(content) as engine:
        counter = asyncio.create_task(count())
        result = await check_image(engine, progress=lambda done, total: told.append((done, total)))
        counter.cancel()
    assert result.clean
    assert turns >= 3
    assert told[-1] == (4, 4)


async def test_repair_read_only_image_refuses() -> None:
    async with engine_on(damaged(), writable=False) as engine:
        with pytest.raises(ReadOnly):
            await check_image(engine, repair=True)


async def test_check_closed_image_refuses() -> None:
    async with engine_on(damaged()) as engine:
        pass
    for repair in (False, True):
        with pytest.raises(ImageClosed):
            await check_image(engine, repair=repair)


async def test_repair_failed_image_refuses_and_a_check_does_not() -> None:
    engine = await Engine.open(MemoryStorage(damaged()), EngineOptions(writable=True))
    engine.fail(StorageError(EIO))
    with pytest.raises(ImageFailed):
        await check_image(engine, repair=True)
    assert (await check_image(engine)).clean
    with pytest.raises(ImageFailed):
        await engine.close()


# ---------------------------------------------------------------------- marks

numbers = st.integers(1, 5000)


each_kind = pytest.mark.parametrize("kind", [Marks, lambda: Flags(5001)])


@each_kind
@given(runs=st.lists(st.tuples(numbers, st.integers(0, 1300))), start=numbers, stop=numbers)
def test_marks_runs_answer_what_was_marked_and_gaps_are_the_rest(
    kind: Callable[[], Marks | Flags], runs: list[tuple[int, int]], start: int, stop: int
) -> None:
    marks, known = kind(), set[int]()
    for first, n in runs:
        run = set(range(first, first + n))
        assert set(marks.mark_run(first, n)) == run & known
        known |= run
    gaps = {number for first, n in marks.gaps(start, stop) for number in range(first, first + n)}
    assert gaps == set(range(start, stop)) - known


@each_kind
@given(marked=st.lists(st.integers(0, 300)))
def test_marks_each_number_answers_the_second_of_its_kind(
    kind: Callable[[], Marks | Flags], marked: list[int]
) -> None:
    known = set[int]()
    doubles = []
    for i, number in enumerate(marked):
        if number in known:
            doubles.append(i)
        if number:
            known.add(number)
    assert kind().mark_each(marked) == doubles


@given(
    marked=st.lists(st.integers(0, 20 * 512), max_size=60),
    max_pages=st.integers(2, 5),
    each=st.booleans(),
)
def test_marks_windows_see_everything_once(marked: list[int], max_pages: int, each: bool) -> None:
    doubles = gaps = 0
    for marks in windows(max_pages):
        found = []
        for number in marked:
            if each:
                found += [number + 2 for _ in marks.mark_each([number + 2])]
            else:
                found += marks.mark_run(number + 2, 1)
        doubles += sum(number >> 9 < marks.stop_page for number in found)
        gaps += sum(n for _, n in marks.gaps(0, 30 * 512))
    assert doubles == len(marked) - len(set(marked))
    assert gaps == 30 * 512 - len(set(marked))


# -------------------------------------------------------------- slices at once


@given(data=st.data(), table_size=st.sampled_from([1, 2, 16]), tables=st.booleans())
def test_judge_of_a_slice_says_what_the_geometry_says_of_each_entry(
    data: st.DataObject, table_size: int, tables: bool
) -> None:
    size = CLUSTER << data.draw(st.integers(0, 4))
    header_size = data.draw(st.sampled_from([1, 3]))
    l1 = (header_size + data.draw(st.integers(0, 20))) * size
    geometry = Geometry(size, table_size, header_size, l1)
    end = data.draw(st.sampled_from([geometry.l1_end, geometry.l1_end + 30 * size, 1 << 62]))
    near = [0, size, l1, geometry.l1_end, end, end - geometry.table_bytes, 2**63, 2**64]
    near += [l1 - geometry.table_bytes]
    entry = st.sampled_from(near) | st.integers(0, 80).map(lambda n: n * size)
    step = st.sampled_from([-size, -1, 0, 0, 0, 1, 2, size])
    values = data.draw(st.lists(st.tuples(entry, step).map(sum), max_size=60))
    entries = array("Q", [value % 2**64 for value in values]) + array("Q", bytes(8 * 512))
    lanes = as_lanes(entries[:512].tobytes())
    wrong = Judge(geometry, end, tables=tables).wrong(lanes)
    is_valid = geometry.check_table_offset if tables else geometry.check_cluster_offset
    empty = {0} if tables else {0, 1}
    expected = [i for i, e in enumerate(entries) if e not in empty and not is_valid(e, end)]
    assert indices_of(wrong) == expected
    for i in expected:
        entries[i] = 0
    assert as_bytes(without(lanes, wrong)) == entries[:512].tobytes()


@given(steps=st.lists(st.sampled_from([1, 1, 1, 0, -1, 5]), max_size=40))
def test_breaks_of_a_slice_are_counted(steps: list[int]) -> None:
    numbers = [1000 + sum(steps[:i]) for i in range(len(steps))]
    numbers += range(5000, 5000 + 512 - len(numbers))
    lanes = as_lanes(array("Q", [number * CLUSTER for number in numbers]).tobytes())
    assert count_breaks(lanes, CLUSTER) == sum(b != a + 1 for a, b in pairwise(numbers))


@pytest.mark.parametrize("bits", range(12, 27))
@pytest.mark.parametrize("first", [3, 65_000, 2**24 - 700, 2**35 - 1])
def test_run_in_a_table_is_known_from_one_that_is_none(bits: int, first: int) -> None:
    geometry = Geometry(1 << bits, 1, 1, 1 << bits)
    numbers = range(first, first + 2048)
    entries = array("Q", [number << bits for number in numbers])
    scanner = Scanner(geometry, (first + 4096) << bits, Marks())
    assert scanner.run_in(entries.tobytes()) == first << bits
    for i in (1, 700, 2046):
        for wrong in (entries[i] + 1, entries[i] + (1 << bits), entries[i] ^ 1 << 60):
            entries[i], right = wrong, entries[i]
            assert scanner.run_in(entries.tobytes()) == 0
            entries[i] = right
    assert scanner.run_in(entries.tobytes()) == first << bits


@given(
    offsets=st.lists(
        st.sampled_from([0, 7, 9]).map(CLUSTER.__mul__)
        | st.integers(0, 2**51 - 1).map(CLUSTER.__mul__),
        max_size=80,
    ),
    part=st.sampled_from([3, 16, 100]),
)
def test_sort_in_parts_sorts(offsets: list[int], part: int) -> None:
    entries = array("Q", offsets)
    for _ in sort_offsets(entries, part):
        pass
    assert list(entries) == sorted(offsets)


async def test_check_of_many_tables_finds_those_that_hold_something() -> None:
    """There are so many that their holes are looked for first."""
    first, n = TABLE, 1024
    places = [first + i * 64 * KIB for i in range(n)]
    data = places[-1] + 64 * KIB
    content = image(
        n * SPAN,
        l1=dict(enumerate(reversed(places))),
        l2={places[i]: {i: data + i * CLUSTER} for i in (0, 1, 500, 1023)},
        file_size=data + n * CLUSTER,
    )
    assert (await check(content)).to_dict() | {"findings": ()} == (
        await check(content, max_pages=2)
    ).to_dict() | {"findings": ()}
    result, naive = await check(content), Naive(content)
    assert (result.allocated_clusters, result.corruptions) == (4, 0)
    assert result.leaks == len(naive.leaks)


async def test_check_of_tables_that_nobody_can_tell_apart_looks_into_none() -> None:
    size, n = 2 * CLUSTER, 8200
    content = image(
        MIB,
        cluster_size=size,
        table_size=16,
        l1={i: (17 + i) * size for i in range(n)},
        l2={n * size: {0: 7}},
        file_size=(n + 40) * size,
    )
    result = await check(content, repair=True)
    assert result.corruptions == (n - 1) * 15
    assert (result.allocated_clusters, result.repaired) == (0, False)
    assert [f.kind for f in result.findings] == [FindingKind.SHARED_TABLE]
