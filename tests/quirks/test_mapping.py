"""Quirks of QEMU's mapping (dossier Q1-Q3, Q5, Q12, Q13, Q19): ours is right, QEMU's is shown."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import qedasync
from qedasync.errors import CorruptTable, HeaderError
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.helpers import qemu
from tests.quirks.images import CLUSTER, KIB, MIB, image, opened, tables_at, write_file

GIB = 1024 * MIB


# ------------------------------------------- Q1: clusters = ceil(bytes / cluster_size), everywhere


async def test_quirk_q1_rounding_write_of_4095_clusters_keeps_its_neighbour() -> None:
    storage = MemoryStorage(image(64 * MIB, table_size=16))
    async with opened(storage) as disk:
        await disk.pwrite(b"n" * CLUSTER, 4095 * CLUSTER)
        await disk.pwrite(b"w" * (4095 * CLUSTER), 0)
        assert await disk.pread(CLUSTER, 4095 * CLUSTER) == b"n" * CLUSTER
        assert await disk.pread(4095 * CLUSTER, 0) == b"w" * (4095 * CLUSTER)
        assert [run.kind for run in await disk.block_status(4096 * CLUSTER, MIB)] == ["unallocated"]


async def test_quirk_q1_rounding_zero_write_of_4095_clusters_keeps_its_neighbour() -> None:
    async with opened(MemoryStorage(image(64 * MIB, table_size=16))) as disk:
        await disk.pwrite(b"n" * CLUSTER, 4095 * CLUSTER)
        await disk.write_zeroes(4095 * CLUSTER, 0)
        assert await disk.pread(CLUSTER, 4095 * CLUSTER) == b"n" * CLUSTER


def full_table_before_data() -> SparseBytes:
    """An empty L2 table of 4096 entries; the next cluster of the file is guest data at 16 MiB."""
    table = tables_at(table_size=8)
    data, second = table + 8 * CLUSTER, table + 9 * CLUSTER
    return image(
        32 * MIB,
        table_size=8,
        l1={0: table, 1: second},
        l2={table: {}, second: {0: data}},
        data={data: b"g" * CLUSTER},
    )


async def test_quirk_q1_rounding_write_of_a_whole_table_stays_inside_the_table() -> None:
    async with opened(MemoryStorage(full_table_before_data())) as disk:
        await disk.pwrite(b"w" * (16 * MIB), 0)
        assert await disk.pread(CLUSTER, 16 * MIB) == b"g" * CLUSTER
        assert await disk.pread(16 * MIB, 0) == b"w" * (16 * MIB)
        assert (await disk.check()).corruptions == 0


async def test_quirk_q1_rounding_check_of_4096_clusters_sees_no_leak() -> None:
    storage = MemoryStorage(image(32 * MIB))
    async with opened(storage) as disk:
        await disk.pwrite(b"w" * (17 * MIB), 0)
        assert storage.size > 4096 * CLUSTER
        result = await disk.check()
        assert (result.corruptions, result.leaks) == (0, 0)


@qemu.needs_qemu_7_2
def test_qemu_q1_rounding_destroys_the_neighbour(tmp_path: Path) -> None:
    disk = tmp_path / "q1.qed"
    qemu.create(disk, 64 * MIB, cluster_size=CLUSTER, table_size=16)
    qemu.io(disk, f"write -P 7 {4095 * CLUSTER} 4k", f"write -P 8 0 {4095 * CLUSTER}")
    said = qemu.io(disk, f"read -P 7 {4095 * CLUSTER} 4k", status=None)
    assert "error" in said or "failed" in said


@qemu.needs_qemu_7_2
def test_qemu_q1_rounding_writes_past_a_table(tmp_path: Path) -> None:
    disk = write_file(tmp_path / "q1.qed", full_table_before_data())
    qemu.io(disk, f"read -P {ord('g')} 16M 4k", "write -P 8 0 16M")
    said = qemu.io(disk, f"read -P {ord('g')} 16M 4k", status=None)
    assert "verification failed" in said


@qemu.needs_qemu_7_2
def test_qemu_q1_rounding_check_sees_a_phantom_leak(tmp_path: Path) -> None:
    disk = tmp_path / "q1.qed"
    qemu.create(disk, 32 * MIB, cluster_size=CLUSTER, table_size=2)
    qemu.io(disk, "write -P 8 0 17M")
    assert qemu.check(disk)["leaks"] == qemu.phantom_leaks(disk, CLUSTER) == 1


# -------------------------------------------------------------- Q2: table_size 1 is a legal image


async def test_quirk_q2_table_size_1_opens_and_works() -> None:
    storage = MemoryStorage(image(8 * MIB, table_size=1))
    async with opened(storage) as disk:
        await disk.pwrite(b"w" * (5 * MIB), 3 * KIB)  # 512 entries a table: 2 MiB each
    async with opened(MemoryStorage(storage.snapshot()), "r") as disk:
        assert await disk.pread(5 * MIB, 3 * KIB) == b"w" * (5 * MIB)


@qemu.needs_qemu_7_2
def test_qemu_q2_table_size_1_is_made_and_not_opened(tmp_path: Path) -> None:
    disk = tmp_path / "q2.qed"
    qemu.create(disk, 8 * MIB, cluster_size=CLUSTER, table_size=1)
    assert "table offset is invalid" in qemu.io(disk, "read 0 512", status=1)


# ---------------------------------------------------------- Q3: block status of 4 GiB in one table


async def test_quirk_q3_block_status_of_4_gib_in_one_table_is_one_run(tmp_path: Path) -> None:
    path = tmp_path / "q3.qed"
    await qedasync.create(path, 16 * GIB, cluster_size=MIB)
    async with qedasync.open(path, "r+") as disk:
        await disk.pwrite(b"w", 0)
        runs = [run async for run in disk.extents()]
        status = await disk.block_status(MIB, 4 * GIB)
    assert [(run.start, run.length) for run in runs] == [(0, MIB), (MIB, 16 * GIB - MIB)]
    assert [(run.start, run.length, run.zero) for run in status] == [(MIB, 4 * GIB, True)]


@qemu.needs_qemu_7_2
def test_qemu_q3_map_of_4_gib_in_one_table_aborts(tmp_path: Path) -> None:
    disk = tmp_path / "q3.qed"
    qemu.create(disk, 4 * GIB + MIB, cluster_size=MIB)
    qemu.io(disk, "write 0 1M")
    assert qemu.img("map", "-f", "qed", disk, status=None).returncode == -signal.SIGABRT


# -------------------------------------------- Q5: the rest of a ZERO cluster stays zero in overlays


async def new_overlay(folder: Path, size: int, cluster_size: int = CLUSTER) -> Path:
    """An overlay of ``size`` bytes over 64 KiB of 0xBB."""
    (folder / "base.raw").write_bytes(b"\xbb" * (64 * KIB))
    await qedasync.create(
        folder / "top.qed",
        size,
        cluster_size=cluster_size,
        backing_file="base.raw",
        backing_format="raw",
    )
    return folder / "top.qed"


async def test_quirk_q5_partial_write_into_zero_cluster_leaves_zeroes(tmp_path: Path) -> None:
    async with qedasync.open(await new_overlay(tmp_path, 64 * KIB), "r+") as disk:
        await disk.write_zeroes(CLUSTER, 0)
        await disk.pwrite(b"w" * 512, 512)
        assert await disk.pread(CLUSTER, 0) == bytes(512) + b"w" * 512 + bytes(CLUSTER - 1024)
        assert await disk.pread(512, CLUSTER) == b"\xbb" * 512


@qemu.needs_qemu_7_2
def test_qemu_q5_partial_write_into_zero_cluster_brings_backing_data_back(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"\xbb" * (64 * KIB))
    disk = tmp_path / "top.qed"
    qemu.create(disk, 64 * KIB, cluster_size=CLUSTER, backing=("base.raw", "raw"))
    said = qemu.io(disk, "write -z 0 4k", "write -P 7 512 512", "read -P 0xbb 1k 3k")
    assert "failed" not in said


# ------------------------------------- Q12, Q13: every cluster of a run is validated, and overlaps

TABLE = tables_at()
DATA = TABLE + 2 * CLUSTER


def run_past_the_end() -> SparseBytes:
    """Two clusters in a row, of which only the first is in the file."""
    return image(
        4 * MIB,
        l1={0: TABLE},
        l2={TABLE: {0: DATA, 1: DATA + CLUSTER}},
        data={DATA: b"d" * CLUSTER},
    )


async def test_quirk_q12_run_that_leaves_the_file_is_refused() -> None:
    async with opened(MemoryStorage(run_past_the_end())) as disk:
        assert await disk.pread(CLUSTER, 0) == b"d" * CLUSTER
        with pytest.raises(CorruptTable):
            await disk.pread(2 * CLUSTER, 0)
        with pytest.raises(CorruptTable):
            await disk.pwrite(b"w" * (2 * CLUSTER), 0)
        with pytest.raises(CorruptTable):
            await disk.pwrite(b"w", CLUSTER)


@pytest.mark.parametrize("seen", [False, True])
async def test_quirk_q12_entry_past_the_end_never_names_a_new_cluster(seen: bool) -> None:
    """The file grows over the place it points to; it stays as invalid as it was."""
    far, near = 600 * CLUSTER, 5 * CLUSTER  # in another slice of the table, and in the same
    async with opened(MemoryStorage(run_past_the_end())) as disk:
        if seen:
            await disk.pread(1, 0)
        await disk.pwrite(b"n" * (2 * CLUSTER), far)
        for attempt in (
            lambda: disk.pread(1, CLUSTER),
            lambda: disk.pwrite(b"w", CLUSTER),
            lambda: disk.pwrite(b"w", near),
            lambda: disk.write_zeroes(CLUSTER, near),
        ):
            with pytest.raises(CorruptTable):
                await attempt()
        assert await disk.pread(2 * CLUSTER, far) == b"n" * (2 * CLUSTER)
        assert await disk.pread(CLUSTER, 0) == b"d" * CLUSTER


async def test_quirk_q12_entry_past_the_end_is_gone_after_repair() -> None:
    storage = MemoryStorage(run_past_the_end())
    async with opened(storage) as disk:
        assert (await disk.check(repair=True)).corruptions == 0
        await disk.pwrite(b"n" * CLUSTER, 5 * CLUSTER)
        await disk.pwrite(b"w" * CLUSTER, CLUSTER)
        assert await disk.pread(CLUSTER, 5 * CLUSTER) == b"n" * CLUSTER
        assert await disk.pread(2 * CLUSTER, 0) == b"d" * CLUSTER + b"w" * CLUSTER


async def test_quirk_q12_table_past_the_end_never_is_a_new_cluster() -> None:
    """The same one level up: guest data would be taken for a table."""
    span = 1024 * CLUSTER
    content = image(4 * span, l1={0: TABLE, 1: DATA}, l2={TABLE: {}})
    content.resize(DATA)
    data = b"\1\0\0\0\0\0\0\0" * (4 * CLUSTER // 8)  # a table could have that
    async with opened(MemoryStorage(content)) as disk:
        await disk.pwrite(data, 0)
        for attempt in (lambda: disk.pread(1, span), lambda: disk.pwrite(b"w", span)):
            with pytest.raises(CorruptTable):
                await attempt()
        await disk.pwrite(b"m" * CLUSTER, 2 * span)
        assert await disk.pread(4 * CLUSTER, 0) == data
        assert await disk.pread(CLUSTER, 2 * span) == b"m" * CLUSTER


@qemu.needs_qemu_7_2
def test_qemu_q12_entry_past_the_end_names_a_new_cluster(tmp_path: Path) -> None:
    disk = write_file(tmp_path / "q12.qed", run_past_the_end())
    said = qemu.io(disk, f"write -P 7 {600 * CLUSTER} 4k", "read -P 7 4k 4k")
    assert "failed" not in said


@qemu.needs_qemu_7_2
def test_qemu_q12_run_that_leaves_the_file_reads_as_zeroes(tmp_path: Path) -> None:
    disk = write_file(tmp_path / "q12.qed", run_past_the_end())
    assert "failed" not in qemu.io(disk, "read -P 0 -s 4k -l 4k 0 8k")


@pytest.mark.parametrize("target", [CLUSTER, 2 * CLUSTER, TABLE, TABLE + CLUSTER])
async def test_quirk_q13_data_on_top_of_a_table_is_not_written(target: int) -> None:
    """L1 is at one cluster, the L2 table right behind it."""
    storage = MemoryStorage(image(MIB, l1={0: TABLE}, l2={TABLE: {0: target}}))
    before = storage.snapshot()
    async with opened(storage) as disk:
        with pytest.raises(CorruptTable):
            await disk.pwrite(b"w" * 512, 0)
        with pytest.raises(CorruptTable):
            await disk.write_zeroes(CLUSTER, 0)
    assert storage.snapshot() == before


@qemu.needs_qemu_7_2
def test_qemu_q13_data_on_top_of_l1_is_written(tmp_path: Path) -> None:
    content = image(MIB, l1={0: TABLE}, l2={TABLE: {0: CLUSTER}})
    disk = write_file(tmp_path / "q13.qed", content)
    qemu.io(disk, "write -P 7 0 512")
    assert disk.read_bytes()[CLUSTER : CLUSTER + 512] == b"\7" * 512


async def test_quirk_q13_header_size_0_is_refused() -> None:
    with pytest.raises(HeaderError, match="header_size"):
        async with opened(MemoryStorage(image(MIB, header_size=0))):
            pass


# ------------------------------------------------------------------------- Q19: the last cluster

TAIL_SIZE = 2 * CLUSTER + 1536


async def test_quirk_q19_zero_write_to_the_end_marks_the_partial_last_cluster() -> None:
    async with opened(MemoryStorage(image(TAIL_SIZE))) as disk:
        await disk.write_zeroes(TAIL_SIZE, 0)
        runs = await disk.block_status(0, TAIL_SIZE)
        assert [(run.kind, run.length) for run in runs] == [("zero", TAIL_SIZE)]


@qemu.needs_qemu_7_2
def test_qemu_q19_zero_write_to_the_end_allocates_the_partial_last_cluster(tmp_path: Path) -> None:
    disk = tmp_path / "q19.qed"
    qemu.create(disk, TAIL_SIZE, cluster_size=CLUSTER)
    qemu.io(disk, f"write -z 0 {TAIL_SIZE}")
    assert [run["data"] for run in qemu.map_runs(disk)] == [False, True]


async def test_quirk_q19_tail_filler_beyond_the_image_is_zero_after_grow(tmp_path: Path) -> None:
    path = await new_overlay(tmp_path, TAIL_SIZE)
    async with qedasync.open(path, "r+") as disk:
        await disk.pwrite(b"w" * 512, 2 * CLUSTER)
        (run,) = await disk.block_status(2 * CLUSTER, 512)
    assert run.offset is not None
    assert path.read_bytes()[run.offset + 1536 : run.offset + CLUSTER] == bytes(CLUSTER - 1536)
    async with qedasync.open(path, "r+") as disk:
        await disk.truncate(4 * CLUSTER)
        assert await disk.pread(1024, 2 * CLUSTER + 512) == b"\xbb" * 1024
        assert not any(await disk.pread(2 * CLUSTER - 1536, TAIL_SIZE))


@qemu.needs_qemu_7_2
def test_qemu_q19_tail_filler_shows_after_grow(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"\xbb" * (64 * KIB))
    disk = tmp_path / "top.qed"
    qemu.create(disk, TAIL_SIZE, cluster_size=CLUSTER, backing=("base.raw", "raw"))
    qemu.io(disk, "write 8k 512")
    qemu.img("rebase", "-u", "-f", "qed", "-b", "", disk)
    qemu.img("resize", "-q", "-f", "qed", disk, str(4 * CLUSTER))
    assert "failed" not in qemu.io(disk, f"read -P 0xbb {TAIL_SIZE} {CLUSTER - 1536}")


# --------------------------------------------------------------- growing and the file's last bytes


async def test_quirk_grow_overlay_under_a_longer_backing_file_reads_as_zeroes(
    tmp_path: Path,
) -> None:
    path = await new_overlay(tmp_path, TAIL_SIZE)
    async with qedasync.open(path, "r+") as disk:
        await disk.truncate(8 * CLUSTER)
        assert await disk.pread(TAIL_SIZE, 0) == b"\xbb" * TAIL_SIZE
        assert not any(await disk.pread(8 * CLUSTER - TAIL_SIZE, TAIL_SIZE))


@qemu.needs_qemu_7_2
def test_qemu_grow_overlay_under_a_longer_backing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"\xbb" * (64 * KIB))
    disk = tmp_path / "top.qed"
    qemu.create(disk, TAIL_SIZE, cluster_size=CLUSTER, backing=("base.raw", "raw"))
    result = qemu.img("resize", "-f", "qed", disk, str(8 * CLUSTER), status=1)
    assert "does not support requested flags" in result.stderr


async def test_quirk_partial_cluster_at_the_end_of_file_does_not_show_in_new_clusters() -> None:
    storage = MemoryStorage(image(MIB, data={TABLE: b"\xee" * (CLUSTER - 512)}))
    async with opened(storage) as disk:
        await disk.pwrite(b"w" * 512, 512)
        await disk.pwrite(b"w" * 512, 8 * CLUSTER + 512)
        expected = bytes(512) + b"w" * 512 + bytes(CLUSTER - 1024)
        assert await disk.pread(CLUSTER, 0) == expected
        assert await disk.pread(CLUSTER, 8 * CLUSTER) == expected
        assert (await disk.check()).corruptions == 0
