"""measure: the size it tells is the one that convert makes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync import RequestError
from tests.jobs.disks import KIB, MIB, chain


@pytest.mark.parametrize(("cluster_size", "table_size"), [(4096, 2), (65536, 4), (1 << 20, 1)])
async def test_measure_of_a_file_is_the_size_that_convert_makes(
    tmp_path: Path, cluster_size: int, table_size: int
) -> None:
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(40 * MIB)
        for pos in (0, 100 * KIB, 5 * MIB + 4096, 17 * MIB):
            file.seek(pos)
            file.write(os.urandom(200 * KIB))
    wish = {"cluster_size": cluster_size, "table_size": max(table_size, 2)}
    found = await qedasync.measure(tmp_path / "a.raw", **wish)  # type: ignore[arg-type]
    await qedasync.convert(tmp_path / "a.raw", tmp_path / "a.qed", **wish)  # type: ignore[arg-type]
    assert found.required == os.stat(tmp_path / "a.qed").st_size
    assert found.fully_allocated >= found.required


@pytest.mark.parametrize("size", [0, 1, 511 * 512, 3 * MIB])
async def test_measure_of_a_size_is_that_of_an_empty_and_of_a_full_image(
    tmp_path: Path, size: int
) -> None:
    found = await qedasync.measure(size, cluster_size=4096, table_size=2)
    await qedasync.create(tmp_path / "a.qed", size, cluster_size=4096, table_size=2)
    assert found.required == os.stat(tmp_path / "a.qed").st_size
    async with qedasync.open(tmp_path / "a.qed", "r+") as image:
        await image.pwrite(b"x" * image.size, 0)
    assert found.fully_allocated == os.stat(tmp_path / "a.qed").st_size


async def test_measure_counts_what_backing_files_hold(tmp_path: Path) -> None:
    top = await chain(tmp_path)
    flat = await qedasync.measure(top, cluster_size=4096, table_size=2)
    async with qedasync.open(top) as image:
        assert await qedasync.measure(image, cluster_size=4096, table_size=2) == flat
        held = sum(run.length for run in await image.block_status(0, image.size) if not run.zero)
    assert flat.required >= held


async def test_measure_of_raw_is_the_size_of_the_disk(tmp_path: Path) -> None:
    assert await qedasync.measure(1000, format="raw") == await qedasync.measure(1024, format="raw")
    assert (await qedasync.measure(1000, format="raw")).required == 1024


@pytest.mark.parametrize(
    "wish",
    [
        {"cluster_size": 5000},
        {"cluster_size": 2048},
        {"cluster_size": "128M"},
        {"table_size": 3},
        {"table_size": 32},
        {"format": "vdi"},
        {"source": 1 << 62},
        {"source": -1024},
    ],
)
async def test_measure_what_no_image_can_be_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        await qedasync.measure(**{"source": MIB, **wish})
