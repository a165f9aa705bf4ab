"""Disks around disks tell a map as it is looked up, however many runs it has."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from qedasync import Extent, ExtentKind, StorageError
from qedasync.cli.nodes.disk_filter import DiskFilter, Shifted
from qedasync.cli.witness import Over, Witness

RUN = 1 << 20
N = 1 << 20
"""Runs of the disk, too many to ask for at once."""


class Fragmented:
    """A disk of a million runs, of which it tells few at a time; bad from some byte on."""

    path, readonly, closed = "disk", True, False
    size = N * RUN

    def __init__(self, kind: ExtentKind = ExtentKind.DATA, bad: int = N * RUN) -> None:
        self.kind = kind
        self.bad = bad
        self.told = 0

    def run(self, start: int, length: int) -> Extent:
        self.told += 1
        assert self.told < 10_000, "the whole map at once"
        if start + length > self.bad:
            raise StorageError(errno.EIO, offset=self.bad)
        zero = self.kind is not ExtentKind.DATA
        return Extent(start, length, self.kind, zero, offset=None if zero else 2 * start)

    async def extents(self) -> AsyncIterator[Extent]:
        for start in range(0, self.size, RUN):
            yield self.run(start, RUN)

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        end = offset + length
        starts = [offset, *range((offset // RUN + 1) * RUN, end, RUN)]
        return [self.run(a, b - a) for a, b in zip(starts, [*starts[1:], end], strict=True)]


class Hole(Fragmented):
    """A disk that holds nothing, in one run."""

    async def extents(self) -> AsyncIterator[Extent]:
        yield Extent(0, self.size, ExtentKind.UNALLOCATED, True)


async def first(disk: Any, n: int) -> list[Extent]:
    found = []
    async with aclosing(disk.extents()) as runs:
        async for run in runs:
            found.append(run)
            if len(found) == n:
                break
    return found


@pytest.mark.parametrize(
    "around",
    [DiskFilter, Witness, lambda disk: Over(disk, disk)],
    ids=["filter", "witness", "over"],
)
async def test_extents_of_a_million_runs_are_looked_up_as_one_goes(around: Any) -> None:
    disk = Fragmented()
    assert await first(around(disk), 5) == [disk.run(i * RUN, RUN) for i in range(5)]


async def test_extents_of_a_shifted_disk_are_shifted_as_its_block_status_is() -> None:
    disk = Shifted(Fragmented(), 7 * RUN)
    runs = await first(disk, 3)
    assert [run.offset for run in runs] == [7 * RUN, 9 * RUN, 11 * RUN]
    assert runs == await disk.block_status(0, 3 * RUN)


async def test_extents_of_an_opaque_witness_know_no_zeroes() -> None:
    disk = Fragmented(ExtentKind.ZERO)
    assert await first(Witness(disk, opaque=True), 2) == [  # type: ignore[arg-type]
        replace(disk.run(i * RUN, RUN), zero=False) for i in range(2)
    ]


@pytest.mark.parametrize("bad", [0, 3 * RUN, 3 * RUN + 512, 3 * RUN + 1000])
async def test_extents_that_cannot_be_told_are_noted_to_the_sector(bad: int) -> None:
    witness = Witness(Fragmented(bad=bad))  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        await first(witness, N)
    assert witness.failure is not None
    assert (witness.failure.what, witness.failure.offset) == ("status", bad // 512 * 512)


async def test_extents_over_a_target_ask_it_piece_by_piece() -> None:
    target = Fragmented()
    runs = await first(Over(Hole(), target), 1500)  # type: ignore[arg-type]
    assert [run.start for run in runs] == [i * RUN for i in range(1500)]
    assert {run.kind for run in runs} == {ExtentKind.ZERO}
    assert target.told == 2048  # two GiB
