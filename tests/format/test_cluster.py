"""Lookup: kinds, run lengths, cuts, and what happens at entries that cannot be right."""

from __future__ import annotations

import errno
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.errors import CorruptTable
from qedasync.format.cluster import (
    ClusterKind,
    Lookup,
    NeedSlice,
    add_runs,
    count_contiguous_clusters,
    is_one_run,
    lookup,
    slice_runs,
)
from qedasync.format.geometry import SLICE_ENTRIES, Geometry
from qedasync.format.pattern import RunPattern
from qedasync.format.table import zero_slice

CS = 4096
GEOMETRY = Geometry(CS, 2, 1, CS)  # L1 in clusters 1-2, 1024 entries a table, two slices each
TABLE = 3 * CS
END = 2000 * CS
SPAN = 1024 * CS  # of one L2 table
FOUND, ZERO, L2, L1 = ClusterKind
PATTERN = RunPattern(12)


def slice_of(entries: dict[int, int]) -> array[int]:
    result = zero_slice()
    for index, value in entries.items():
        result[index] = value
    return result


def find(
    pos: int,
    length: int,
    entries: dict[int, int],
    *,
    geometry: Geometry = GEOMETRY,
    end: int = END,
    number: int = 0,
) -> Lookup | NeedSlice:
    """A lookup where only L1 entry 0 and slice ``number`` are there."""
    return lookup(geometry, [TABLE, 0], {number: slice_of(entries)}, pos, length, end)


def run(first: int, cluster: int, n: int) -> dict[int, int]:
    return {first + i: (cluster + i) * CS for i in range(n)}


def test_kinds_are_the_numbers_of_the_source() -> None:
    assert [(kind.name, kind.value) for kind in ClusterKind] == [
        ("FOUND", 0),
        ("ZERO", 1),
        ("L2", 2),
        ("L1", 3),
    ]


# count_contiguous_clusters


@pytest.mark.parametrize(
    ("entries", "index", "n", "expected"),
    [
        ([0, 0, 0, 1], 0, 4, 3),
        ([0, 0, 0, 1], 0, 2, 2),
        ([0, 0, 0], 1, 99, 2),
        ([1, 1, 0], 0, 3, 2),
        ([1, 1 + CS], 0, 2, 1),
        ([0, CS], 0, 2, 1),
        ([5 * CS, 6 * CS, 7 * CS, 9 * CS], 0, 4, 3),
        ([5 * CS, 5 * CS], 0, 2, 1),
        ([6 * CS, 5 * CS], 0, 2, 1),
        ([5 * CS, 0], 0, 2, 1),
        ([5 * CS, 1], 0, 2, 1),
        ([7], 0, 1, 1),
        ([2**64 - CS, 0], 0, 2, 1),
    ],
)
def test_count_contiguous_clusters_stops_where_the_run_ends(
    entries: list[int], index: int, n: int, expected: int
) -> None:
    assert count_contiguous_clusters(entries, index, n, CS) == expected


@given(
    st.lists(st.sampled_from([0, 1, 5 * CS, 6 * CS, 7 * CS]), min_size=1, max_size=20),
    st.data(),
)
def test_count_contiguous_clusters_agrees_with_pairs(
    entries: list[int], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(entries) - 1))
    n = data.draw(st.integers(1, 25))
    expected = 1
    while expected < n and index + expected < len(entries):
        before, entry = entries[index + expected - 1 : index + expected + 1]
        if entry != (before if before <= 1 else before + CS):
            break
        expected += 1
    assert count_contiguous_clusters(entries, index, n, CS) == expected


# no L2 table


@pytest.mark.parametrize("l1", [[], [0], [0] * 1024])
def test_lookup_without_table_reaches_to_the_end_of_the_span(l1: list[int]) -> None:
    assert lookup(GEOMETRY, l1, {}, 0, 10 * SPAN, END) == (L1, SPAN, 0)
    assert lookup(GEOMETRY, l1, {}, SPAN - 100, SPAN, END) == (L1, 100, 0)
    assert lookup(GEOMETRY, l1, {}, 5000, 100, END) == (L1, 100, 0)


def test_lookup_past_the_end_of_l1_is_unallocated() -> None:
    assert lookup(GEOMETRY, [TABLE], {}, SPAN + 7, 2 * SPAN, END) == (L1, SPAN - 7, 0)


def test_lookup_without_table_ignores_a_slice_that_is_there() -> None:
    slices = {0: slice_of({0: 5 * CS})}
    assert lookup(GEOMETRY, [0], slices, 0, CS, END) == (L1, CS, 0)


# the slice is missing


@pytest.mark.parametrize(
    ("pos", "expected"),
    [
        (0, NeedSlice(0, TABLE)),
        (511 * CS + 5, NeedSlice(0, TABLE)),
        (512 * CS, NeedSlice(1, TABLE + 4096)),
        (SPAN, NeedSlice(2, 9 * CS)),
        (SPAN + 600 * CS, NeedSlice(3, 9 * CS + 4096)),
    ],
)
def test_lookup_without_slice_says_which_one_and_where(pos: int, expected: NeedSlice) -> None:
    answer = lookup(GEOMETRY, [TABLE, 9 * CS], {}, pos, CS, END)
    assert isinstance(answer, NeedSlice)
    assert answer == expected


@pytest.mark.parametrize(
    "value",
    [
        1,  # means nothing in L1
        4095,
        TABLE + 512,
        CS,  # L1 itself
        2 * CS,
        END,
        END - CS,  # half of the table is past the end
        2**64 - CS,
    ],
)
def test_lookup_invalid_l1_entry_is_corrupt(value: int) -> None:
    with pytest.raises(CorruptTable) as caught:
        lookup(GEOMETRY, [TABLE, value], {}, SPAN + 12345, 1, END)
    error = caught.value
    assert (error.level, error.index, error.value, error.pos) == (1, 1, value, SPAN + 12345)
    assert error.errno == errno.EINVAL
    assert f"{value:#x}" in str(error)


def test_lookup_with_table_size_1_finds_the_table() -> None:
    geometry = Geometry(CS, 1, 1, CS)
    assert lookup(geometry, [2 * CS], {}, 0, 1, 3 * CS) == NeedSlice(0, 2 * CS)


# runs


def test_lookup_found_offset_includes_the_offset_in_the_cluster() -> None:
    assert find(CS + 100, 50, {1: 7 * CS}) == (FOUND, 50, 7 * CS + 100)


def test_lookup_found_run_is_cut_at_the_request() -> None:
    entries = run(0, 100, 8)
    assert find(100, 2 * CS, entries) == (FOUND, 2 * CS, 100 * CS + 100)


def test_lookup_found_run_ends_where_clusters_are_scattered() -> None:
    entries = run(0, 100, 3) | {3: 50 * CS}
    assert find(10, 9 * CS, entries) == (FOUND, 3 * CS - 10, 100 * CS + 10)
    assert find(3 * CS, 9 * CS, entries) == (FOUND, CS, 50 * CS)


def test_lookup_found_run_reversed_is_one_cluster_each() -> None:
    entries = {0: 12 * CS, 1: 11 * CS, 2: 10 * CS}
    assert find(0, 3 * CS, entries) == (FOUND, CS, 12 * CS)


def test_lookup_zero_and_unallocated_are_separate_runs() -> None:
    entries = {2: 1, 3: 1, 5: 9 * CS}
    assert find(1, 9 * CS, entries) == (L2, 2 * CS - 1, 0)
    assert find(2 * CS + 1, 9 * CS, entries) == (ZERO, 2 * CS - 1, 0)
    assert find(4 * CS, 9 * CS, entries) == (L2, CS, 0)
    assert find(5 * CS, 9 * CS, entries) == (FOUND, CS, 9 * CS)


def test_lookup_unallocated_run_is_cut_at_the_slice() -> None:
    assert find(5, SPAN, {}) == (L2, 512 * CS - 5, 0)
    assert find(511 * CS, SPAN, {}) == (L2, CS, 0)


def test_lookup_found_run_is_cut_at_the_slice() -> None:
    assert find(510 * CS, 9 * CS, run(510, 700, 2)) == (FOUND, 2 * CS, 700 * CS)


def test_lookup_in_the_second_slice_uses_its_entries() -> None:
    assert find(513 * CS + 1, 1, {1: 9 * CS}, number=1) == (FOUND, 1, 9 * CS + 1)


def test_lookup_last_byte_of_the_image_is_found() -> None:
    pos = SPAN - 1
    assert find(pos, 1, {511: 9 * CS}, number=1) == (FOUND, 1, 10 * CS - 1)


@pytest.mark.parametrize("value", [0, 1])
def test_lookup_run_of_4_gib_and_more_keeps_its_length(value: int) -> None:
    # In 32 bits a run of exactly k * 4 GiB has length 0.
    geometry = Geometry(16 << 20, 1, 1, 16 << 20)
    slices = {0: array("Q", [value] * SLICE_ENTRIES)}
    answer = lookup(geometry, [32 << 20], slices, 0, 1 << 40, 1 << 40)
    assert answer == (ZERO if value else L2, 8 << 30, 0)
    answer = lookup(geometry, [32 << 20], slices, 0, 4 << 30, 1 << 40)
    assert answer == (ZERO if value else L2, 4 << 30, 0)


def test_lookup_found_run_of_4_gib_keeps_its_length() -> None:
    size = 16 << 20
    geometry = Geometry(size, 1, 1, size)
    slices = {0: array("Q", range(3 * size, (3 + SLICE_ENTRIES) * size, size))}
    answer = lookup(geometry, [2 * size], slices, 0, 4 << 30, 1 << 50)
    assert answer == (FOUND, 4 << 30, 3 * size)


# entries that cannot be right


@pytest.mark.parametrize(
    "value", [2, 3, 4095, CS, 2 * CS, 9 * CS + 1, 9 * CS + 512, END, END + CS, 2**64 - CS]
)
@pytest.mark.parametrize("length", [1, 3 * CS])
def test_lookup_invalid_l2_entry_is_corrupt(value: int, length: int) -> None:
    pos = 515 * CS + 9
    with pytest.raises(CorruptTable) as caught:
        find(pos, length, {3: value}, number=1)
    error = caught.value
    assert (error.level, error.index, error.value, error.pos) == (2, 515, value, pos)
    assert error.errno == errno.EINVAL
    assert f"{value:#x}" in str(error)


def test_lookup_run_that_leaves_the_file_is_cut_there() -> None:
    # QEMU checks the first cluster only: writes past the end were lost to the next allocation.
    entries = run(0, 1998, 4)
    assert find(7, 4 * CS, entries) == (FOUND, 2 * CS - 7, 1998 * CS + 7)
    assert find(CS, 3 * CS, entries) == (FOUND, CS, 1999 * CS)
    with pytest.raises(CorruptTable):
        find(2 * CS, 2 * CS, entries)


def test_lookup_run_that_reaches_into_l1_is_cut_there() -> None:
    geometry = Geometry(CS, 2, 1, 10 * CS)
    entries = run(0, 8, 6)
    assert find(0, 6 * CS, entries, geometry=geometry) == (FOUND, 2 * CS, 8 * CS)
    with pytest.raises(CorruptTable):
        find(2 * CS, 4 * CS, entries, geometry=geometry)
    assert find(4 * CS, 2 * CS, entries, geometry=geometry) == (FOUND, 2 * CS, 12 * CS)


def test_lookup_run_before_an_invalid_entry_is_readable() -> None:
    entries = {0: 9 * CS, 1: 3}
    assert find(0, 2 * CS, entries) == (FOUND, CS, 9 * CS)
    with pytest.raises(CorruptTable):
        find(CS, CS, entries)


# against a plain model


@given(st.data())
def test_lookup_walked_over_a_slice_agrees_with_each_entry(data: st.DataObject) -> None:
    geometry = Geometry(CS, 2, 1, 5 * CS)
    end = 12 * CS
    values = st.sampled_from([0, 0, 1, 1, 3 * CS + 1, *(n * CS for n in range(14))])
    entries = data.draw(st.lists(values, min_size=1, max_size=24))
    pos = data.draw(st.integers(0, len(entries) * CS - 1))
    length = data.draw(st.integers(1, len(entries) * CS - pos))
    slices = {0: slice_of(dict(enumerate(entries)))}

    entry, start = entries[pos // CS], pos % CS
    if entry > 1 and not geometry.check_cluster_offset(entry, end):
        with pytest.raises(CorruptTable):
            lookup(geometry, [20 * CS], slices, pos, length, end)
        return
    answer = lookup(geometry, [20 * CS], slices, pos, length, end)
    assert isinstance(answer, Lookup)
    assert answer.kind is (L2 if entry == 0 else ZERO if entry == 1 else FOUND)
    assert answer.offset == (entry + start if entry > 1 else 0)
    assert 1 <= answer.length <= length

    def continues(i: int) -> bool:
        expected = entry if entry <= 1 else entry + i * CS
        valid = entry <= 1 or geometry.check_cluster_offset(expected, end)
        return entries[pos // CS + i] == expected and valid

    n = (start + answer.length + CS - 1) // CS
    assert all(continues(i) for i in range(n))
    if answer.length < length:
        assert (start + answer.length) % CS == 0
        assert not continues(n), "the run ended too early"


ENTRIES = st.lists(
    st.one_of(
        st.tuples(st.just("zero"), st.integers(0, 1), st.integers(1, 600)),
        st.tuples(st.just("data"), st.integers(2, 2000), st.integers(1, 600)),
    ),
    min_size=1,
    max_size=12,
)
"""Runs, each by what it is of, its first cluster or entry, and how many there are of it."""


@given(ENTRIES, st.integers(0, 511), st.integers(1, 512))
def test_slice_runs_are_those_that_lookups_find(
    pieces: list[tuple[str, int, int]], first: int, n: int
) -> None:
    values: list[int] = []
    for kind, value, count in pieces:
        values += [(value + i) * CS if kind == "data" else value for i in range(count)]
    entries = array("Q", (values * 512)[:SLICE_ENTRIES])
    end = min(first + n, SLICE_ENTRIES)
    expected, index = [], first
    while index < end:
        count = count_contiguous_clusters(entries, index, end - index, CS)
        expected.append((entries[index], count))
        index += count
    assert slice_runs(entries, first, end, CS, PATTERN) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [(CS, 2)], [(CS, 2)]),
        ([(CS, 2)], [], [(CS, 2)]),
        ([(CS, 2)], [(3 * CS, 5), (0, 1)], [(CS, 7), (0, 1)]),
        ([(1, 2)], [(1, 5)], [(1, 7)]),
        ([(1, 2)], [(0, 5)], [(1, 2), (0, 5)]),
        ([(CS, 2)], [(4 * CS, 5)], [(CS, 2), (4 * CS, 5)]),
    ],
)
def test_add_runs_joins_what_goes_on(
    before: list[tuple[int, int]], after: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    runs = [*before]
    add_runs(runs, after, CS)
    assert runs == expected


@pytest.mark.parametrize("n", [1, 2, 511, 512])
@pytest.mark.parametrize("head", [0, 1, 7 * CS, 250 * CS, 65000 * CS, (1 << 63) - 1024 * CS])
def test_one_run_is_one_until_an_entry_changes(n: int, head: int) -> None:
    step = CS if head > 1 else 0
    entries = array("Q", (head + i * step for i in range(n)))
    assert is_one_run(entries, CS, PATTERN)
    for index in range(1, n, 85):
        for value in (0, 1, entries[index] + 2 * CS):
            changed = array("Q", entries)
            changed[index] = value
            assert is_one_run(changed, CS, PATTERN) == (changed == entries)


def test_one_run_of_carries_between_entries_is_none() -> None:
    # As one number, 2**64 too much in one lane is 1 too much in the next.
    entries = array("Q", (CS * (i + 5) for i in range(512)))
    entries[3] = entries[-1] = (1 << 64) - CS
    assert not is_one_run(entries, CS, PATTERN)
