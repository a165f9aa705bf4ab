"""Buffers to read into: as long as asked for, their owner's alone."""

from __future__ import annotations

import pytest

from qedasync.storage.buffers import new_buffer


@pytest.mark.parametrize("length", [0, 1, 65535, 65536, 1 << 20])
def test_new_buffer_has_its_length_and_may_be_changed(length: int) -> None:
    first, second = new_buffer(length), new_buffer(length)
    assert type(first) is bytearray
    assert len(first) == length
    first[:] = b"x" * length
    second[:] = b"y" * length
    assert first == b"x" * length
    first += b"z"
    assert len(first) == length + 1
