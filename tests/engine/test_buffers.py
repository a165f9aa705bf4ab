"""Buffers laid end to end, cut without copying."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.engine.buffers import cut


@given(
    st.lists(st.binary(max_size=9), max_size=6),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_cut_any_range_gives_those_bytes(buffers: list[bytes], start: int, length: int) -> None:
    whole = b"".join(buffers)
    assert b"".join(cut(buffers, start, length)) == whole[start : start + length]


def test_cut_result_shares_memory_with_buffers() -> None:
    buffers = [bytearray(4), bytearray(4)]
    for view in cut(buffers, 3, 2):
        view[:] = b"x"
    assert buffers == [b"\0\0\0x", b"x\0\0\0"]


@pytest.mark.parametrize(("start", "length"), [(0, 0), (4, 4), (9, 1)])
def test_cut_nothing_gives_no_views(start: int, length: int) -> None:
    assert [view for view in cut([b"abcd"], start, length) if view] == []
