"""A power loss while an image is created: no image, or all of it; over an old one, that or the old.

Few writes are made, so every subset of them is tried, and every way to tear them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random

import pytest

import qedasync
from qedasync.errors import QEDError
from qedasync.storage.crash import CrashPoint, CrashState, crash_points
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.recorder import RecorderStorage
from tests.crash.stage import CLUSTER, empty_image

SIZE = 10 * CLUSTER
OLD_SIZE = 7 * CLUSTER
BACKING = Random(7).randbytes(SIZE)
OLD_BACKING = Random(8).randbytes(OLD_SIZE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "base.raw").write_bytes(BACKING)
    (tmp_path / "used.raw").write_bytes(OLD_BACKING)  # a name as long as the new one
    return tmp_path / "disk.qed"


async def old_image(path: Path) -> tuple[SparseBytes, bytes]:
    """An overlay with some data, and what it reads."""
    storage = MemoryStorage(empty_image(OLD_SIZE, backing="used.raw"))
    async with qedasync.open(path, "r+", storage=storage) as disk:
        await disk.pwrite(Random(9).randbytes(3 * CLUSTER), CLUSTER)
        content = bytes(await disk.pread(OLD_SIZE, 0))
    return storage.content, content


async def create_over(path: Path, old: SparseBytes, backing: str | None) -> RecorderStorage:
    recorder = RecorderStorage(MemoryStorage(old.copy()))
    await qedasync.create(
        path,
        SIZE,
        cluster_size=CLUSTER,
        table_size=2,
        backing_file=backing,
        backing_format="raw" if backing else None,
        storage=recorder,
    )
    return recorder


def every_state(point: CrashPoint) -> Iterator[CrashState]:
    """All subsets of the optional changes, each torn in every way."""
    ways = [range(1 << change.sectors) if change.sectors else (0, 1) for change in point.optional]
    for masks in product(*ways):
        chosen = [number for number, mask in enumerate(masks) if mask]
        torn = {n: masks[n] for n in chosen if point.optional[n].sectors}
        yield point.state(chosen, torn)


async def outcome(path: Path, content: SparseBytes) -> tuple[int, bytes] | None:
    """Size and guest bytes of the image in this file, repaired if need be; None if it is none."""
    try:
        async with qedasync.open(path, "r+", storage=MemoryStorage(content)) as disk:
            return disk.size, bytes(await disk.pread(disk.size, 0))
    except QEDError:
        return None


@pytest.mark.parametrize("backing", [None, "base.raw"])
@pytest.mark.parametrize("over", ["nothing", "bytes", "an image"])
async def test_create_crash_anywhere_leaves_no_image_or_a_whole_one(
    path: Path, over: str, backing: str | None
) -> None:
    old, before = SparseBytes(), None
    if over == "bytes":
        old = SparseBytes(Random(10).randbytes(20 * CLUSTER))
    elif over == "an image":
        old, content = await old_image(path)
        before = (OLD_SIZE, content)
    after = (SIZE, BACKING if backing else bytes(SIZE))
    recorder = await create_over(path, old, backing)
    outcomes = []
    for point in crash_points(recorder.log, recorder.base):
        for state in every_state(point):
            found = await outcome(path, state.content())
            assert found in (None, before, after), state
            outcomes.append(found)
    assert outcomes[0] == before
    assert outcomes[-1] == after


@pytest.mark.parametrize("backing", [None, "base.raw"])
async def test_create_crash_after_its_return_leaves_the_new_image(
    path: Path, backing: str | None
) -> None:
    old, _ = await old_image(path)
    recorder = await create_over(path, old, backing)
    (point,) = crash_points(recorder.log, recorder.base, [recorder.position])
    assert point.optional == ()
    assert await outcome(path, point.durable) == (SIZE, BACKING if backing else bytes(SIZE))
