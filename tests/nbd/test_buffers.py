"""The pool of buffers: what is used again, and how much is kept."""

from __future__ import annotations

import pytest

from qedasync.nbd.buffers import BufferPool

KIB = 1 << 10


@pytest.mark.parametrize("length", [1, 64 * KIB, 64 * KIB + 1, 256 * KIB, 5 << 20])
def test_buffer_has_the_length_asked_for(length: int) -> None:
    assert len(BufferPool().take(length)) == length


def test_buffer_given_back_is_used_again_for_a_like_length() -> None:
    pool = BufferPool()
    first = pool.take(200 * KIB)
    whole = first.obj
    pool.give(first)
    assert pool.take(100 * KIB).obj is not whole
    assert pool.take(256 * KIB).obj is whole
    assert pool.take(256 * KIB).obj is not whole


@pytest.mark.parametrize("length", [4 * KIB, 8 << 20])
def test_buffer_too_short_or_too_long_is_not_kept(length: int) -> None:
    pool = BufferPool()
    view = pool.take(length)
    pool.give(view)
    assert pool.take(length).obj is not view.obj


def test_pool_keeps_no_more_than_its_limit() -> None:
    pool = BufferPool(limit=512 * KIB)
    views = [pool.take(256 * KIB) for _ in range(3)]
    for view in views:
        pool.give(view)
    kept = {id(view.obj) for view in views}
    again = [pool.take(256 * KIB) for _ in range(3)]
    assert sum(id(view.obj) in kept for view in again) == 2
