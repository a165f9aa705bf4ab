"""Streams: where requests go, what they do, and how a stream is cut."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.workload import Workload

WORK = Workload(count=64, block=4096, step=17 * 4096, size=64 * 4096)


def test_positions_odd_step_visits_every_block_once() -> None:
    assert sorted(WORK.positions()) == list(range(0, WORK.size, WORK.block))


def test_positions_start_is_where_the_first_request_goes() -> None:
    assert replace(WORK, start=8192).positions()[:2] == [8192, 8192 + WORK.step]


def test_reads_mixed_stream_reads_its_share_and_spreads_it() -> None:
    mixed = replace(WORK, write=True, read_percent=70)
    kinds = [mixed.reads(number) for number in range(100)]
    assert sum(kinds) == 70
    assert 0 < sum(kinds[:10]) < 10


def test_reads_writing_stream_never_reads() -> None:
    assert not any(replace(WORK, write=True).reads(number) for number in range(100))


def test_shared_parts_make_up_the_whole() -> None:
    part = replace(WORK, depth=8).shared(4)
    assert (part.count, part.depth) == (16, 2)


def test_shortened_stream_still_fills_the_queue() -> None:
    assert replace(WORK, count=10_000, depth=16).shortened(10).count == 1000
    assert replace(WORK, count=10_000, depth=64).shortened(1000).count == 256
    assert replace(WORK, count=100, depth=64).shortened(2).count == 100
