"""Quirks of QEMU's repair and of what it never gives back (dossier Q17, §9, §9.1)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import qedasync
from qedasync.errors import RequestError
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.helpers import qemu
from tests.quirks.images import CLUSTER, KIB, MIB, image, opened, tables_at, write_file

TABLE = tables_at()
DATA = TABLE + 2 * CLUSTER


def doubly_referenced() -> SparseBytes:
    """Clusters 0 and 3 of the disk are one cluster of the file."""
    return image(MIB, l1={0: TABLE}, l2={TABLE: {0: DATA, 3: DATA}}, data={DATA: b"d" * CLUSTER})


def with_leaks() -> SparseBytes:
    """Two clusters at the end of the file are nobody's."""
    return image(
        MIB,
        l1={0: TABLE},
        l2={TABLE: {0: DATA}},
        data={DATA: b"d" * CLUSTER},
        file_size=DATA + 3 * CLUSTER,
    )


async def test_quirk_repair_double_reference_gives_each_its_own_cluster(tmp_path: Path) -> None:
    storage = MemoryStorage(doubly_referenced())
    async with opened(storage) as disk:
        assert (await disk.check()).corruptions == 1
        result = await disk.check(repair=True)
        assert (result.corruptions, result.corruptions_fixed) == (0, 1)
        await disk.pwrite(b"w" * 512, 0)
        assert await disk.pread(CLUSTER, 0) == b"w" * 512 + b"d" * (CLUSTER - 512)
        assert await disk.pread(CLUSTER, 3 * CLUSTER) == b"d" * CLUSTER
        assert (await disk.check()).corruptions == 0


@qemu.needs_qemu
async def test_quirk_repair_double_reference_satisfies_qemu(tmp_path: Path) -> None:
    path = write_file(tmp_path / "double.qed", doubly_referenced())
    assert qemu.check(path)["corruptions"] == 1
    async with qedasync.open(path, "r+") as disk:
        await disk.check(repair=True)
    counts = qemu.check(path)
    assert (counts["corruptions"], counts["leaks"]) == (0, 0)


@qemu.needs_qemu_7_2
def test_qemu_repair_double_reference_stays(tmp_path: Path) -> None:
    path = write_file(tmp_path / "double.qed", doubly_referenced())
    qemu.img("check", "-f", "qed", "-r", "all", path, status=2)
    assert qemu.check(path)["corruptions"] == 1


async def test_quirk_q17_repair_cuts_leaks_off_the_end_of_the_file() -> None:
    storage = MemoryStorage(with_leaks())
    async with opened(storage) as disk:
        assert (await disk.check()).leaks == 2
        result = await disk.check(repair=True)
        assert (result.leaks, result.leaks_fixed, result.corruptions_fixed) == (0, 2, 0)
        assert await disk.pread(CLUSTER, 0) == b"d" * CLUSTER
    assert storage.size == DATA + CLUSTER


@qemu.needs_qemu_7_2
def test_qemu_q17_repair_leaves_leaks(tmp_path: Path) -> None:
    path = write_file(tmp_path / "leaks.qed", with_leaks())
    qemu.img("check", "-f", "qed", "-r", "leaks", path, status=3)
    assert path.stat().st_size == DATA + 3 * CLUSTER


async def test_quirk_discard_gives_the_hosts_blocks_back(tmp_path: Path) -> None:
    path = tmp_path / "discard.qed"
    await qedasync.create(path, 4 * MIB)
    async with qedasync.open(path, "r+") as disk:
        await disk.pwrite(os.urandom(2 * MIB), 0)
        await disk.flush()
        before = path.stat().st_blocks
        await disk.discard(MIB, 0)
        await disk.flush()
        assert await disk.pread(MIB, 0) == bytes(MIB)
        assert any(await disk.pread(MIB, MIB))
    assert path.stat().st_blocks <= before - (MIB - 64 * KIB) // 512


@qemu.needs_qemu_7_2
def test_qemu_discard_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "discard.qed"
    qemu.create(path, 4 * MIB)
    said = qemu.io(path, "write -P 7 0 2M", "discard 0 1M", "read -P 7 0 2M")
    assert "failed" not in said


async def test_quirk_shrink_is_refused_and_changes_nothing() -> None:
    storage = MemoryStorage(with_leaks())
    before = storage.snapshot()
    async with opened(storage) as disk:
        with pytest.raises(RequestError):
            await disk.truncate(MIB // 2)
        assert disk.size == MIB
    assert storage.snapshot() == before
