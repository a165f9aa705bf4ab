"""Geometry: shifts, masks, limits, and which offsets are valid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.format.geometry import SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.format.header import new_header

KIB, MIB, GIB, TIB, PIB, EIB = (1 << 10 * n for n in range(1, 7))

# Image sizes that table_size 1, 2, 4, 8, 16 can map; 0 where the product does not fit in 64 bits.
MAX_IMAGE_SIZES = {
    4 * KIB: [1 * GIB, 4 * GIB, 16 * GIB, 64 * GIB, 256 * GIB],
    16 * KIB: [64 * GIB, 256 * GIB, 1 * TIB, 4 * TIB, 16 * TIB],
    64 * KIB: [4 * TIB, 16 * TIB, 64 * TIB, 256 * TIB, 1 * PIB],
    256 * KIB: [256 * TIB, 1 * PIB, 4 * PIB, 16 * PIB, 64 * PIB],
    1 * MIB: [16 * PIB, 64 * PIB, 256 * PIB, 1 * EIB, 4 * EIB],
    2 * MIB: [128 * PIB, 512 * PIB, 2 * EIB, 8 * EIB, 0],
    4 * MIB: [1 * EIB, 4 * EIB, 0, 0, 0],
    8 * MIB: [8 * EIB, 0, 0, 0, 0],
    16 * MIB: [0, 0, 0, 0, 0],
    32 * MIB: [0, 0, 0, 0, 0],
    64 * MIB: [0, 0, 0, 0, 0],
}

geometries = st.builds(
    lambda cluster_bits, table_bits, header_size, gap: Geometry(
        1 << cluster_bits, 1 << table_bits, header_size, (header_size + gap) << cluster_bits
    ),
    cluster_bits=st.integers(12, 26),
    table_bits=st.integers(0, 4),
    header_size=st.integers(1, 3),
    gap=st.integers(0, 3),
)
positions = st.integers(0, 2**63 - 1)


def small(table_size: int = 2, header_size: int = 1, l1_cluster: int = 1) -> Geometry:
    return Geometry(4096, table_size, header_size, l1_cluster * 4096)


def test_geometry_of_default_header_has_the_known_numbers() -> None:
    geometry = Geometry.of(new_header(10 * MIB, 65536, 4))
    assert geometry == Geometry(65536, 4, 1, 65536)
    assert geometry.cluster_bits == 16
    assert geometry.cluster_mask == 0xFFFF
    assert geometry.table_entries == 32768
    assert geometry.table_bytes == 256 * KIB
    assert geometry.l2_bits == 15
    assert geometry.l1_shift == 31
    assert geometry.slice_shift == 25
    assert geometry.slices_per_table == 64
    assert geometry.first_cluster_offset == 65536
    assert geometry.l1_end == 5 * 65536


def test_geometry_smallest_table_is_one_slice() -> None:
    geometry = small(table_size=1)
    assert geometry.table_entries == SLICE_ENTRIES
    assert geometry.slices_per_table == 1
    assert geometry.slice_shift == geometry.l1_shift


@pytest.mark.parametrize(
    ("cluster_size", "table_size", "expected"),
    [(cs, 1 << i, size) for cs, row in MAX_IMAGE_SIZES.items() for i, size in enumerate(row)],
)
def test_max_image_size_is_what_qemu_computes_in_64_bits(
    cluster_size: int, table_size: int, expected: int
) -> None:
    geometry = Geometry(cluster_size, table_size, 1, cluster_size)
    assert geometry.max_image_size == expected
    entries = table_size * cluster_size // 8
    assert geometry.max_image_size == entries * entries * cluster_size % 2**64


@given(geometries, positions)
def test_position_split_into_indexes_is_put_together_again(geometry: Geometry, pos: int) -> None:
    span = geometry.table_entries * geometry.cluster_size
    assert pos == (
        geometry.l1_index(pos) * span
        + geometry.l2_index(pos) * geometry.cluster_size
        + geometry.offset_into_cluster(pos)
    )
    assert geometry.l2_index(pos) < geometry.table_entries
    assert geometry.offset_into_cluster(pos) < geometry.cluster_size


@given(geometries, positions)
def test_slice_holds_the_entry_of_its_position(geometry: Geometry, pos: int) -> None:
    table_offset = 7 * geometry.table_bytes
    slice_offset = geometry.slice_file_offset(table_offset, pos)
    entry_offset = table_offset + 8 * geometry.l2_index(pos)
    assert slice_offset <= entry_offset < slice_offset + SLICE_BYTES
    assert (slice_offset - table_offset) % SLICE_BYTES == 0
    number = geometry.slice_of(pos)
    assert number // geometry.slices_per_table == geometry.l1_index(pos)
    assert number == pos // (SLICE_ENTRIES * geometry.cluster_size)


@given(geometries, positions)
def test_rounding_agrees_with_division(geometry: Geometry, pos: int) -> None:
    size = geometry.cluster_size
    assert geometry.start_of_cluster(pos) == pos // size * size
    assert geometry.round_up(pos) == -(-pos // size) * size
    assert geometry.bytes_to_clusters(pos) == -(-pos // size)


@pytest.mark.parametrize("cluster_size", [4096, 65536])
def test_bytes_to_clusters_of_cluster_size_clusters_counts_no_extra(cluster_size: int) -> None:
    # Dividing by cluster_size - 1 counts one too many from cluster_size - 1 clusters on.
    geometry = Geometry(cluster_size, 16, 1, cluster_size)
    for n in (cluster_size - 2, cluster_size - 1, cluster_size, 2 * cluster_size):
        assert geometry.bytes_to_clusters(n * cluster_size) == n
        assert geometry.bytes_to_clusters(n * cluster_size - 1) == n
        assert geometry.bytes_to_clusters(n * cluster_size + 1) == n + 1


def test_bytes_to_clusters_of_nothing_is_zero() -> None:
    assert small().bytes_to_clusters(0) == 0


def test_l1_entries_used_counts_started_spans() -> None:
    geometry = small()  # 1024 entries: 4 MiB for each L1 entry
    sizes = [0, 512, 4 * MIB, 4 * MIB + 512, 4 * GIB]
    assert [geometry.l1_entries_used(size) for size in sizes] == [0, 1, 1, 2, 1024]


@given(geometries)
def test_l1_entries_used_by_the_largest_image_fill_l1(geometry: Geometry) -> None:
    if geometry.max_image_size:
        assert geometry.l1_entries_used(geometry.max_image_size) == geometry.table_entries


END = 20 * 4096


@pytest.mark.parametrize(
    ("offset", "valid"),
    [
        (0, False),  # the header
        (4096, False),  # L1's first cluster
        (2 * 4096, False),  # L1's last cluster
        (3 * 4096, True),
        (3 * 4096 + 1, False),
        (3 * 4096 + 512, False),
        (19 * 4096, True),
        (20 * 4096, False),  # the end of the file
        (1 << 63, False),
        (2**64 - 4096, False),
    ],
)
def test_cluster_offset_is_aligned_in_the_file_and_off_metadata(offset: int, valid: bool) -> None:
    assert small().check_cluster_offset(offset, END) is valid


@pytest.mark.parametrize(
    ("cluster", "valid"), [(1, False), (2, True), (4, True), (5, False), (6, False), (7, True)]
)
def test_cluster_offset_before_an_l1_in_the_middle_is_valid(cluster: int, valid: bool) -> None:
    geometry = small(header_size=2, l1_cluster=5)
    assert geometry.check_cluster_offset(cluster * 4096, END) is valid


@pytest.mark.parametrize(
    ("offset", "valid"),
    [
        (0, False),
        (1 * 4096, False),
        (2 * 4096, False),
        (3 * 4096, True),
        (3 * 4096 + 8, False),
        (18 * 4096, True),
        (19 * 4096, False),  # its second cluster is past the end
        (20 * 4096, False),
        (2**64 - 4096, False),  # would wrap in 64 bits
        (1, False),  # a zero cluster's mark means nothing in L1
    ],
)
def test_table_offset_of_two_clusters_lies_whole_in_the_file(offset: int, valid: bool) -> None:
    assert small().check_table_offset(offset, END) is valid


@pytest.mark.parametrize(
    ("cluster", "valid"),
    [(1, False), (2, True), (3, True), (4, False), (5, False), (6, False), (7, True)],
)
def test_table_offset_may_not_reach_into_an_l1_in_the_middle(cluster: int, valid: bool) -> None:
    geometry = small(header_size=2, l1_cluster=5)
    assert geometry.check_table_offset(cluster * 4096, END) is valid


@pytest.mark.parametrize(("cluster", "valid"), [(1, False), (2, True), (19, True), (20, False)])
def test_table_offset_with_table_size_1_can_be_valid(cluster: int, valid: bool) -> None:
    assert small(table_size=1).check_table_offset(cluster * 4096, END) is valid


@given(geometries, st.integers(0, 64), st.integers(0, 64))
def test_table_offset_is_valid_where_all_its_clusters_are(
    geometry: Geometry, cluster: int, end: int
) -> None:
    clusters = [(cluster + i) * geometry.cluster_size for i in range(geometry.table_size)]
    end_of_file = end * geometry.cluster_size
    expected = all(geometry.check_cluster_offset(offset, end_of_file) for offset in clusters)
    assert geometry.check_table_offset(clusters[0], end_of_file) is expected
