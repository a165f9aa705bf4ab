"""Tables: packing on any host, what has to be written, and the bulk check of a slice."""

from __future__ import annotations

import struct
import sys
from array import array

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qedasync.format.geometry import SLICE_ENTRIES, Geometry
from qedasync.format.table import (
    SECTOR_ENTRIES,
    pack_entries,
    sector_span,
    slice_is_sound,
    unpack_entries,
    zero_slice,
)

U64 = st.integers(0, 2**64 - 1)


@given(st.lists(U64, max_size=80))
def test_entries_packed_and_unpacked_are_the_same(values: list[int]) -> None:
    data = struct.pack(f"<{len(values)}Q", *values)
    assert list(unpack_entries(data)) == values
    assert pack_entries(array("Q", values)) == data


@given(st.data())
def test_entries_packed_in_part_are_that_part(data: st.DataObject) -> None:
    values = data.draw(st.lists(U64, max_size=80))
    first = data.draw(st.integers(0, len(values)))
    n = data.draw(st.integers(0, len(values) - first))
    expected = struct.pack(f"<{n}Q", *values[first : first + n])
    assert pack_entries(array("Q", values), first, n) == expected


@pytest.mark.parametrize(("first", "n"), [(0, 4), (3, 1), (-1, 1), (2, -1)])
def test_entries_packed_beyond_the_table_are_refused(first: int, n: int) -> None:
    with pytest.raises(AssertionError):
        pack_entries(array("Q", [1, 2, 3]), first, n)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_unpack_takes_any_buffer_and_copies_it(kind: type) -> None:
    data = bytearray(struct.pack("<2Q", 65536, 1))
    entries = unpack_entries(kind(data))
    data[:] = bytes(16)
    assert list(entries) == [65536, 1]


def test_unpack_of_half_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        unpack_entries(bytes(12))


def test_entries_on_the_other_kind_of_host_are_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    # The bytes a big-endian host would hold in memory, made on this one by swapping once more.
    other = {"little": "big", "big": "little"}[sys.byteorder]
    values = array("Q", [0, 1, 0x0102030405060708])
    swapped = array("Q", values)
    swapped.byteswap()
    on_disk = pack_entries(values)
    monkeypatch.setattr(sys, "byteorder", other)
    assert unpack_entries(on_disk) == swapped
    assert pack_entries(swapped) == on_disk
    assert pack_entries(swapped, 2, 1) == on_disk[16:]
    swapped_again = array("Q", swapped)
    swapped_again.byteswap()
    assert swapped_again == values, "packing must not swap the caller's array"


def test_entries_on_disk_are_little_endian() -> None:
    assert pack_entries(array("Q", [0x30000])) == bytes([0, 0, 3, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("first", "n", "expected"),
    [
        (0, 1, (0, 64)),
        (63, 1, (0, 64)),
        (63, 2, (0, 128)),
        (64, 1, (64, 64)),
        (64, 64, (64, 64)),
        (64, 65, (64, 128)),
        (100, 300, (64, 384)),
        (0, 512, (0, 512)),
    ],
)
def test_sector_span_is_the_groups_touched(first: int, n: int, expected: tuple[int, int]) -> None:
    assert sector_span(first, n) == expected


@given(st.integers(0, 2**21), st.integers(1, 2**21))
def test_sector_span_is_the_least_aligned_cover(first: int, n: int) -> None:
    start, count = sector_span(first, n)
    assert start % SECTOR_ENTRIES == count % SECTOR_ENTRIES == 0
    assert start <= first < start + SECTOR_ENTRIES
    assert first + n <= start + count < first + n + SECTOR_ENTRIES


def test_zero_slice_is_a_new_empty_slice_each_time() -> None:
    entries = zero_slice()
    assert list(entries) == [0] * SLICE_ENTRIES
    entries[0] = 1
    assert zero_slice()[0] == 0


CS = 4096
END = 64 * CS
L1_FIRST = Geometry(CS, 2, 1, CS)
L1_LATER = Geometry(CS, 2, 3, 10 * CS)
LARGE = Geometry(1 << 20, 4, 1, 1 << 20)


def sound(
    entries: list[int], geometry: Geometry = L1_FIRST, end: int = END, filler: int = 0
) -> bool:
    padded = entries + [filler] * (SLICE_ENTRIES - len(entries))
    return slice_is_sound(pack_entries(array("Q", padded)), geometry, end)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, True),
        (1, True),
        (2, False),
        (3, False),
        (CS - 1, False),
        (CS, False),  # on L1
        (2 * CS, False),  # on L1's second cluster
        (3 * CS, True),
        (3 * CS + 1, False),
        (3 * CS + 2048, False),
        (63 * CS, True),
        (64 * CS, False),
        (1 << 62, False),
        (1 << 63, False),
        ((1 << 63) + 1, False),
        (2**64 - CS, False),
        (2**64 - 1, False),
    ],
)
@pytest.mark.parametrize("index", [0, 1, 255, 511])
@pytest.mark.parametrize("filler", [0, 1, 5 * CS])
def test_slice_with_one_entry_is_as_sound_as_it(
    value: int, expected: bool, index: int, filler: int
) -> None:
    assert sound([filler] * index + [value], filler=filler) is expected


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [(1, False), (2, False), (3, True), (9, True), (10, False), (11, False), (12, True)],
)
def test_slice_before_an_l1_in_the_middle_is_sound(cluster: int, expected: bool) -> None:
    assert sound([cluster * CS], L1_LATER) is expected


def test_slice_in_a_file_that_grew_becomes_sound() -> None:
    assert not sound([64 * CS], end=64 * CS)
    assert sound([64 * CS], end=65 * CS)


def test_slice_near_the_largest_file_offset_is_sound() -> None:
    last = 2**63 - 2 * CS
    assert sound([last], end=last + CS)
    assert not sound([last + CS], end=last + CS)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_slice_of_zeroes_is_sound_in_any_buffer(kind: type) -> None:
    assert slice_is_sound(kind(bytes(4096)), L1_FIRST, 0)
    assert not slice_is_sound(kind(bytes([2]) + bytes(4095)), L1_FIRST, END)


def entries_near_the_limits(geometry: Geometry, end: int) -> st.SearchStrategy[int]:
    clusters = st.integers(0, end // geometry.cluster_size + 1)
    return st.one_of(
        st.just(0),
        st.just(1),
        clusters.map(lambda n: n * geometry.cluster_size),
        st.builds(lambda n, low: n * geometry.cluster_size + low, clusters, st.integers(-2, 2)),
        U64,
    ).map(lambda value: value % 2**64)


@st.composite
def slices(draw: st.DrawFn) -> tuple[Geometry, int, list[int]]:
    geometry = draw(st.sampled_from([L1_FIRST, L1_LATER, LARGE]))
    end = draw(st.integers(0, 64)) * geometry.cluster_size
    valid = [n * geometry.cluster_size for n in range(65)]
    valid = [0, 1, *(n for n in valid if geometry.check_cluster_offset(n, end))]
    good = draw(st.lists(st.sampled_from(valid), min_size=1, max_size=60))
    odd = draw(st.lists(entries_near_the_limits(geometry, end), max_size=2))
    return geometry, end, draw(st.permutations(good + odd))


@given(slices())
@example((L1_FIRST, END, [1, 0, 1, 2**64 - 1]))
@example((L1_FIRST, END, [3, 1]))
@example((L1_FIRST, 0, [1]))
def test_slice_is_as_sound_as_its_entries(case: tuple[Geometry, int, list[int]]) -> None:
    geometry, end, entries = case
    expected = all(n <= 1 or geometry.check_cluster_offset(n, end) for n in entries)
    assert slice_is_sound(pack_entries(array("Q", entries)), geometry, end) is expected
    assert sound(entries, geometry, end) is expected
