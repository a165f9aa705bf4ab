"""Files that cases run on: made as asked, shared where that is safe, dropped from the cache."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import qedasync
from benchmarks.images import Recipe, Shelf, drop_cache, warm_up
from benchmarks.workload import Workload

MIB = 1 << 20
FILLED = Recipe(4 * MIB, ((MIB, MIB),))
WRITES = Workload(count=4, block=4096, step=MIB, size=4 * MIB, write=True, depth=1)

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


@needs_qemu
async def test_image_filled_ranges_hold_data(tmp_path: Path) -> None:
    (path,) = Shelf(tmp_path).standing(FILLED, "qed")
    async with qedasync.open(path) as disk:
        data = [each async for each in disk.extents() if each.kind == "data"]
    assert data[0].start == MIB
    assert sum(each.length for each in data) == MIB


@needs_qemu
@pytest.mark.parametrize("by", ["qemu", "ours"])
def test_image_rehearsed_stream_has_its_clusters(tmp_path: Path, by: str) -> None:
    recipe = Recipe(4 * MIB, rehearsed=by, stream=WRITES)  # type: ignore[arg-type]
    (path,) = Shelf(tmp_path).standing(recipe, "qed")
    four_clusters = 4 << 16
    assert four_clusters < Path(path).stat().st_size < four_clusters + MIB


@needs_qemu
async def test_image_overlays_read_through_to_what_is_filled(tmp_path: Path) -> None:
    (path,) = Shelf(tmp_path).standing(replace(FILLED, layers=2), "qed")
    async with qedasync.open(path) as disk:
        assert disk.backing_file is not None
        assert await disk.pread(2, MIB - 1) == b"\0\x5a"
    async with qedasync.open(tmp_path / str(disk.backing_file)) as below:
        assert below.backing_file is not None


@needs_qemu
def test_shelf_fresh_overlays_stand_on_one_base(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for _ in range(2):
        with shelf.fresh(replace(FILLED, layers=1), "qed"):
            assert len(list(tmp_path.iterdir())) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_shelf_standing_is_made_once_for_each_recipe(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    first = shelf.standing(FILLED, "raw")
    assert shelf.standing(FILLED, "raw") == first
    assert shelf.standing(replace(FILLED, owner="writer"), "raw") != first


def test_shelf_forget_removes_what_one_case_had(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    (kept,), (gone,) = (shelf.standing(replace(FILLED, owner=who), "raw") for who in ("", "me"))
    shelf.forget("me")
    assert Path(kept).exists()
    assert not Path(gone).exists()


def test_raw_file_has_the_size_and_blocks_of_the_recipe(tmp_path: Path) -> None:
    (path,) = Shelf(tmp_path).standing(FILLED, "raw")
    found = Path(path).stat()
    assert found.st_size == 4 * MIB
    assert found.st_blocks * 512 >= MIB


def test_drop_cache_keeps_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"Z" * MIB)
    drop_cache(str(path))
    assert path.read_bytes() == b"Z" * MIB


def test_warm_up_leaves_nothing(tmp_path: Path) -> None:
    warm_up(tmp_path, MIB)
    assert list(tmp_path.iterdir()) == []
