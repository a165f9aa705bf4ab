"""The sequence of operations follows from the workload alone, and stays where it may be."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from qedasync.bench import Pattern, Workload
from qedasync.errors import RequestError


def steps(image_size: int = 1 << 20, **options: Any) -> list[tuple[bool, int]]:
    return list(islice(Workload(**options).fitted(image_size).steps(), 5000))


@pytest.mark.parametrize("rw", list(Pattern))
def test_steps_any_pattern_are_whole_blocks_inside_the_part(rw: Pattern) -> None:
    found = steps(rw=rw, block_size=4096, offset=8192, size=100_000)
    places = {place for _, place in found}
    assert len(found) == 5000
    assert places == set(range(8192, 8192 + 100_000 - 4095, 4096))


@pytest.mark.parametrize("rw", list(Pattern))
def test_steps_any_pattern_read_and_write_as_named(rw: Pattern) -> None:
    assert {writes for writes, _ in steps(rw=rw)} == {
        *([True] if rw.writes else []),
        *([False] if rw.reads else []),
    }


@pytest.mark.parametrize("rw", [Pattern.RW, Pattern.RANDRW])
@pytest.mark.parametrize(("percent", "low", "high"), [(0, 0, 0), (70, 0.67, 0.73), (100, 1, 1)])
def test_steps_of_a_mix_have_the_share_of_reads(
    rw: Pattern, percent: int, low: float, high: float
) -> None:
    found = steps(rw=rw, read_percent=percent)
    assert low <= sum(not writes for writes, _ in found) / len(found) <= high


@pytest.mark.parametrize("rw", [Pattern.READ, Pattern.WRITE])
def test_steps_sequential_go_from_front_to_back_and_start_over(rw: Pattern) -> None:
    places = [place for _, place in steps(rw=rw, size=4096 * 3, number=5)]
    assert places == [0, 4096, 8192, 0, 4096]


def test_steps_sequential_mix_has_two_fronts() -> None:
    found = steps(rw=Pattern.RW, number=100)
    for kind in (False, True):
        places = [place for writes, place in found if writes is kind]
        assert places == list(range(0, 4096 * len(places), 4096))
        assert places


@pytest.mark.parametrize("rw", [Pattern.RW, Pattern.RANDRW])
def test_steps_of_two_sizes_start_where_blocks_of_theirs_do(rw: Pattern) -> None:
    found = steps(rw=rw, write_size=65536, size=1 << 20, read_percent=50)
    assert {place for writes, place in found if writes} == set(range(0, 1 << 20, 65536))
    assert {place for writes, place in found if not writes} == set(range(0, 1 << 20, 4096))


def test_steps_of_another_job_are_others() -> None:
    workload = Workload(jobs=2, number=100).fitted(1 << 20)
    assert list(workload.steps(0)) == list(workload.steps())
    assert list(workload.steps(1)) != list(workload.steps(0))


def test_steps_same_seed_is_the_same_run_and_another_is_not() -> None:
    assert steps(seed=3) == steps(seed=3)
    assert steps(seed=3) != steps(seed=4)


def test_steps_number_ends_them() -> None:
    assert len(steps(number=17)) == 17


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"block_size": 0}, "block size"),
        ({"depth": 0}, "queue depth"),
        ({"runtime": 0.0}, "run time"),
        ({"runtime": float("nan")}, "run time"),
        ({"runtime": float("inf")}, "run time"),
        ({"number": 0}, "number of operations"),
        ({"runtime": None}, "limits the run"),
        ({"read_percent": 101}, "share of reads"),
        ({"offset": -1}, "negative"),
        ({"flush_interval": -1}, "flush interval"),
        ({"verify": True, "block_size": 1000}, "multiple of 16"),
        ({"verify": True, "write_size": 512}, "of one size"),
        ({"verify": True, "rw": Pattern.TRIM}, "trimmed cannot be verified"),
        ({"write_size": 0}, "block size"),
        ({"jobs": 0}, "number of jobs"),
        ({"jobs": 1000, "depth": 1000}, "at most 65536 operations"),
        ({"fill": 256}, "0 to 255"),
    ],
)
def test_workload_impossible_option_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        Workload(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"offset": 8192, "size": 4096}, "reach beyond the image of 8192"),
        ({"offset": 8192}, "0 bytes have no room"),
        ({"offset": 10_000}, "no room"),
        ({"block_size": 8193}, "no room for a block of 8193"),
        ({"write_size": 8193}, "no room for a block of 8193"),
    ],
)
def test_fitted_part_outside_the_image_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        Workload(**options).fitted(8192)
