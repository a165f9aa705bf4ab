"""The quick look of a check: it sees every sound image as sound, and no other one."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedasync.check.glance import Glance
from qedasync.check.numbers import count_number_breaks, from_lanes, lanes_in, to_lanes
from qedasync.check.reader import Pacer
from qedasync.check.survey import Survey
from qedasync.errors import StorageError
from qedasync.format.geometry import Geometry
from qedasync.format.header import Header
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.helpers.naive_check import Naive
from tests.quirks.images import CLUSTER, MIB, image, tables_at

L1 = CLUSTER
TABLE = tables_at()
SECOND = TABLE + 2 * CLUSTER
DATA = TABLE + 4 * CLUSTER
N = 1024
"""Entries of a table."""


class Unreadable(MemoryStorage):
    """Its second table cannot be read."""

    def try_read_into(self, buffers, offset, event=None):  # type: ignore[no-untyped-def]
        if offset >= SECOND:
            raise StorageError(5, offset=offset)
        return super().try_read_into(buffers, offset)


def survey(storage: MemoryStorage, max_pages: int = 1 << 16) -> Survey:
    header = bytearray(64)
    storage.content.read_into(header, 0)
    geometry = Geometry.of(Header.parse(bytes(header)))
    return Survey(storage, geometry, Pacer(None), max_pages)


async def is_sound(storage: MemoryStorage, max_pages: int = 1 << 16) -> bool:
    """What a glance says, once L1 has been found in order."""
    found = survey(storage, max_pages)
    await found._look_at_l1()
    end = found.end_of_file
    glance = Glance(storage, found.geometry, found.tables, Pacer(None), max_pages, end)
    return await glance.run()


def of_two_tables(entries: Iterable[int], n_leaks: int = 0) -> SparseBytes:
    """An image with these entries, in the order of the disk."""
    entries = list(entries)
    tables = {TABLE: dict(enumerate(entries[:N])), SECOND: dict(enumerate(entries[N:]))}
    end = DATA + (2 * N + n_leaks) * CLUSTER
    return image(8 * MIB, l1={0: TABLE, 1: SECOND}, l2=tables, file_size=end)


def scattered(seed: int) -> list[int]:
    """Entries of clusters in no order."""
    entries = [DATA + i * CLUSTER for i in range(2 * N)]
    Random(seed).shuffle(entries)
    return entries


@st.composite
def sound_entries(draw: st.DrawFn) -> list[int]:
    """All kinds of order: runs, clusters here and there, holes, clusters of zeroes."""
    entries = scattered(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(0, 6))):
        start, n = draw(st.integers(0, 2 * N - 1)), draw(st.sampled_from([1, 2, 100, 512, 1500]))
        part = entries[start : start + n]
        change = draw(st.sampled_from(["sort", "clear", "zero", "zero here and there"]))
        if change == "sort":
            part.sort()
        elif change == "clear":
            part = [0] * len(part)
        elif change == "zero":
            part = [1] * len(part)
        else:
            part[::7] = [1] * len(part[::7])
        entries[start : start + n] = part
    return entries


@settings(max_examples=20)
@given(entries=sound_entries(), n_leaks=st.integers(0, 3))
async def test_glance_sound_image_counts_what_the_naive_check_counts(
    entries: list[int], n_leaks: int
) -> None:
    content = of_two_tables(entries, n_leaks)
    naive = Naive(content.copy())
    assert naive.corruptions == 0
    assert await is_sound(MemoryStorage(content))
    found = await survey(MemoryStorage(content)).run()
    in_windows = await survey(MemoryStorage(content), max_pages=2).run()
    assert (found.corruptions, found.allocated) == (0, naive.allocated)
    assert (found.leaks, found.fragmented) == (len(naive.leaks), in_windows.fragmented)
    assert found.leak_ranges.items == in_windows.leak_ranges.items
    assert found.image_end_offset == in_windows.image_end_offset


WRONG = {
    "twice": DATA + 5 * CLUSTER,
    "l1": L1 + CLUSTER,
    "own-table": TABLE,
    "other-table": SECOND + CLUSTER,
    "header": CLUSTER // 2,
    "past-the-end": DATA + 2 * N * CLUSTER,
    "low-bits": DATA + 1,
    "2**31-clusters": CLUSTER << 31,
    "2**32-clusters": DATA + (CLUSTER << 32),
    "top-bit": 2**63 + DATA,
    "all-bits": 2**64 - 1,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("index", [0, 512, 2047])
@pytest.mark.parametrize("is_run", [False, True])
async def test_glance_one_wrong_entry_is_no_sound_image(
    index: int, wrong: int, is_run: bool
) -> None:
    entries = sorted(scattered(1)) if is_run else scattered(1)
    entries[index] = wrong
    entries[7] = DATA + 5 * CLUSTER  # the cluster that is named twice
    if wrong != WRONG["twice"]:
        entries = [e if e != WRONG["twice"] or i == 7 else 0 for i, e in enumerate(entries)]
    content = of_two_tables(entries)
    assert Naive(content.copy()).corruptions
    assert not await is_sound(MemoryStorage(content))
    found = await survey(MemoryStorage(content)).run()
    assert found.corruptions == Naive(content).corruptions


async def test_glance_header_of_many_clusters_is_in_use() -> None:
    table, data = 5 * CLUSTER, 7 * CLUSTER
    l2 = {table: {0: data, 1: data + CLUSTER}}
    end = data + 2 * CLUSTER
    content = image(
        8 * MIB,
        l1={0: table},
        l2=l2,
        file_size=end,
        header_size=3,
        l1_table_offset=3 * CLUSTER,
    )
    assert await is_sound(MemoryStorage(content))
    content.write((2 * CLUSTER).to_bytes(8, "little"), table + 8)
    assert not await is_sound(MemoryStorage(content))


async def test_glance_table_that_cannot_be_read_is_not_sound() -> None:
    assert not await is_sound(Unreadable(of_two_tables(scattered(1))))


async def test_glance_more_clusters_than_flags_is_left_to_the_survey() -> None:
    assert not await is_sound(MemoryStorage(of_two_tables(scattered(1))), max_pages=2)


# ------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("bits", range(12, 27))
@pytest.mark.parametrize("first", [0, 1, 255, 2**24 - 3, 2**25 - 600])
def test_numbers_of_a_piece_are_those_of_its_entries(bits: int, first: int) -> None:
    numbers = [first + (i * 37) % 512 for i in range(512)]
    entries = array("Q", [number << bits for number in numbers])
    lanes = lanes_in(memoryview(entries.tobytes()), bits)
    assert lanes is not None
    assert list(from_lanes(lanes, 512)) == numbers
    assert to_lanes(array("i", numbers)) == lanes
    for index in (0, 1, 300, 511):
        for bit in (*range(bits), *range(bits + 31, 64)):
            entries[index] ^= 1 << bit
            assert lanes_in(memoryview(entries.tobytes()), bits) is None, (index, bit)
            entries[index] ^= 1 << bit


@given(numbers=st.lists(st.integers(0, 3) | st.integers(0, 2**31 - 2), min_size=1, max_size=40))
def test_breaks_between_numbers_are_counted(numbers: list[int]) -> None:
    lanes = to_lanes(array("i", numbers))
    expected = sum(b != a + 1 for a, b in pairwise(numbers))
    assert count_number_breaks(lanes, len(numbers)) == expected
