"""How requests are cut."""

from __future__ import annotations

import pytest

from qedasync.cli.nodes.requests import Margins, aligned, pieces, zero_pieces


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 4096, (0, 4096)), (1, 1, (0, 4096)), (4095, 2, (0, 8192)), (4096, 0, (4096, 0))],
)
def test_aligned_request_is_whole_blocks(
    offset: int, length: int, expected: tuple[int, int]
) -> None:
    assert aligned(offset, length, 4096) == expected


@pytest.mark.parametrize(
    ("length", "most", "expected"),
    [
        (10, 0, [(5, 10)]),
        (10, 10, [(5, 10)]),
        (10, 4, [(5, 4), (9, 4), (13, 2)]),
        (0, 0, []),
        (0, 4, []),
    ],
)
def test_pieces_are_at_most_so_long(
    length: int, most: int, expected: list[tuple[int, int]]
) -> None:
    assert list(pieces(5, length, most)) == expected


@pytest.mark.parametrize(
    ("offset", "length", "most", "most_data", "expected"),
    [
        (0, 24, 0, 0, [(0, 24, False)]),
        (0, 24, 8, 0, [(0, 8, False), (8, 8, False), (16, 8, False)]),
        (0, 32, 20, 0, [(0, 16, False), (16, 16, False)]),
        (3, 18, 0, 0, [(3, 5, True), (8, 8, False), (16, 5, True)]),
        (3, 18, 0, 2, [(3, 2, True), (5, 2, True), (7, 1, True), (8, 8, False),
                       (16, 2, True), (18, 2, True), (20, 1, True)]),
        (9, 3, 0, 0, [(9, 3, True)]),
        (0, 0, 0, 0, []),
    ],
)  # fmt: skip
def test_zeroes_go_in_whole_units_and_the_rest_as_data(
    offset: int, length: int, most: int, most_data: int, expected: list[tuple[int, int, bool]]
) -> None:
    assert list(zero_pieces(offset, length, unit=8, most=most, most_data=most_data)) == expected


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 16, []),
        (0, 5, [(0, 8, ["tail"])]),
        (3, 5, [(0, 8, ["head"])]),
        (3, 2, [(0, 8, ["head", "tail"])]),
        (3, 7, [(0, 16, ["head", "tail"])]),
        (0, 12, [(8, 8, ["tail"])]),
        (3, 13, [(0, 8, ["head"])]),
        (3, 18, [(0, 8, ["head"]), (16, 8, ["tail"])]),
    ],
)
def test_margins_are_read_at_once_where_they_are_neighbours(
    offset: int, length: int, expected: list[tuple[int, int, list[str]]]
) -> None:
    assert list(Margins.of(offset, length, 8).reads()) == expected
