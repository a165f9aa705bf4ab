"""Quirks of QEMU about what it opens and makes (dossier Q4, Q14, Q15, §1.4, §3)."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync.errors import BackingError, BackingRefused, FormatError, HeaderError, RequestError
from qedasync.format.header import Features
from qedasync.storage.memory import MemoryStorage
from tests.helpers import qemu
from tests.quirks.images import CLUSTER, KIB, MIB, image, opened, write_file

TIB = 1 << 40


# ------------------------------------------------------------------ Q4, Q14: sizes that wrap around


async def test_quirk_q4_size_of_a_geometry_that_wraps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        await qedasync.create(tmp_path / "q4.qed", MIB, cluster_size=16 * MIB, table_size=4)
    assert not (tmp_path / "q4.qed").exists()


async def test_quirk_q14_size_of_2_to_the_63_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        async with opened(MemoryStorage(image(1 << 63, cluster_size=2 * MIB, table_size=8)), "r"):
            pass
    with pytest.raises(RequestError):
        await qedasync.create(tmp_path / "q14.qed", 1 << 63, cluster_size=2 * MIB, table_size=8)


@qemu.needs_qemu_7_2
def test_qemu_q14_size_of_2_to_the_63_is_a_disk_of_0_bytes(tmp_path: Path) -> None:
    content = image(1 << 63, cluster_size=2 * MIB, table_size=8)
    disk = write_file(tmp_path / "q14.qed", content)
    info = json.loads(qemu.img("info", "--output=json", "-f", "qed", disk).stdout)
    assert info["virtual-size"] == 0


# --------------------------------------------------------------- Q2, Q15: create validates first


@pytest.mark.parametrize(
    "options",
    [
        {"cluster_size": 5000},
        {"cluster_size": (1 << 32) + CLUSTER},  # CLUSTER in 32 bits
        {"table_size": 3},
        {"table_size": (1 << 32) + 2},
        {"table_size": 1},
        {"size": 100 * TIB},
    ],
)
async def test_quirk_q15_create_that_is_refused_leaves_the_old_file(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "old.qed"
    path.write_bytes(b"precious")
    with pytest.raises(RequestError):
        await qedasync.create(path, **({"size": MIB} | options))
    assert path.read_bytes() == b"precious"


@qemu.needs_qemu_7_2
def test_qemu_q15_create_that_is_refused_empties_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "old.qed"
    path.write_bytes(b"precious")
    qemu.img("create", "-f", "qed", "-o", "cluster_size=5000", path, "1M", status=1)
    assert path.read_bytes() == b""


@qemu.needs_qemu_7_2
def test_qemu_q15_create_takes_32_bits_of_cluster_size(tmp_path: Path) -> None:
    path = tmp_path / "wide.qed"
    qemu.create(path, MIB, cluster_size=(1 << 32) + CLUSTER)
    with path.open("rb") as file:
        assert file.read(8)[4:] == CLUSTER.to_bytes(4, "little")


LONG_NAME = "d/" * ((CLUSTER - 64) // 2) + "base.raw"
"""More than fits before L1 with clusters of 4 KiB."""


async def test_quirk_q15_create_with_a_long_backing_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="name"):
        await qedasync.create(
            tmp_path / "top.qed", MIB, cluster_size=CLUSTER, backing_file=LONG_NAME
        )
    assert not (tmp_path / "top.qed").exists()


@qemu.needs_qemu_7_2
def test_qemu_q15_create_with_a_long_backing_name_overwrites_it_with_l1(tmp_path: Path) -> None:
    top = tmp_path / "top.qed"
    options = ("-o", f"cluster_size={CLUSTER}", "-u", "-F", "raw", "-b", LONG_NAME)
    qemu.img("create", "-q", "-f", "qed", *options, top, "1M")
    assert "backing filename" in qemu.io(top, "read 0 512", status=1)


# --------------------------------------------------- backing names: what a hostile image asks for


def overlay(name: bytes, *, features: Features = Features.BACKING_FILE) -> bytes:
    """An image that names a backing file."""
    content = image(
        64 * KIB,
        features=int(features),
        backing_filename_offset=64,
        backing_filename_size=len(name),
        data={64: name},
    )
    return bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        b'json:{"driver":"null-co","size":65536}',
        b"nbd://127.0.0.1:1/",
        b"http://127.0.0.1:1/base",
        b"../base.raw",
        b"/etc/hostname",
        b"/dev/zero",
        b"link.raw",
    ],
)
async def test_quirk_backing_name_outside_policy_is_refused(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "base.raw").write_bytes(bytes(512))
    (folder / "link.raw").symlink_to("../base.raw")
    top = folder / "top.qed"
    top.write_bytes(overlay(name))
    with pytest.raises(BackingRefused):
        await qedasync.open(top)
    async with qedasync.open(top, backing=False) as disk:
        assert disk.backing_file == name.decode()


@qemu.needs_qemu_7_2
def test_qemu_backing_name_with_a_driver_is_opened(tmp_path: Path) -> None:
    top = tmp_path / "top.qed"
    top.write_bytes(overlay(b'json:{"driver":"null-co","size":65536,"read-zeroes":true}'))
    assert "failed" not in qemu.io(top, "read -P 0 0 64k")


async def test_quirk_backing_name_of_the_image_itself_is_refused(tmp_path: Path) -> None:
    top = tmp_path / "top.qed"
    top.write_bytes(overlay(b"top.qed"))
    with pytest.raises(BackingError):
        await qedasync.open(top)


async def test_quirk_backing_files_in_a_circle_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        name = f"{(number + 1) % 3}.qed".encode()
        (tmp_path / f"{number}.qed").write_bytes(overlay(name))
    with pytest.raises(BackingError):
        await qedasync.open(tmp_path / "0.qed", "r+")


async def test_quirk_hostile_image_with_huge_tables_takes_little_memory(tmp_path: Path) -> None:
    """Tables of 16 MiB each, all of them holes: QEMU keeps 50 whole ones."""
    cluster, table_size, n_tables = 2 * MIB, 8, 60
    table = cluster * table_size
    first = cluster + table
    span = table // 8 * cluster
    content = image(
        n_tables * span,
        cluster_size=cluster,
        table_size=table_size,
        l1={index: first + index * table for index in range(n_tables)},
        file_size=first + n_tables * table,
    )
    path = write_file(tmp_path / "hostile.qed", content)
    assert path.stat().st_blocks * 512 <= 128 * KIB
    tracemalloc.start()
    try:
        async with qedasync.open(path, "r+") as disk:
            for index in range(n_tables):
                assert await disk.pread(1, index * span) == b"\0"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB


async def test_quirk_hostile_header_is_a_clear_error() -> None:
    with pytest.raises(HeaderError, match="cluster_size"):
        async with opened(MemoryStorage(b"QED\0"), "r"):
            pass
