"""Quirks of QEMU about what is on disk when (dossier Q6, Q7, Q8, Q10, Q11, §7.6, §8)."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

import qedasync
from qedasync.errors import ImageFailed, QEDError, StorageError
from qedasync.events import Event
from qedasync.format.header import Features
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import FlushRecord, RecorderStorage, WriteRecord
from tests.helpers import qemu
from tests.quirks.images import CLUSTER, MIB, header_of, image, opened, tables_at

TABLE = tables_at()
DATA = TABLE + 2 * CLUSTER


class ManualClock:
    """Time that only moves when it is told to."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + seconds, wake))
        await wake

    def move(self, seconds: float) -> None:
        self._now += seconds
        for when, wake in self._sleepers:
            if when <= self._now and not wake.done():
                wake.set_result(None)


def with_table() -> MemoryStorage:
    """An image whose first L2 table is there, with one data cluster."""
    return MemoryStorage(
        image(MIB, l1={0: TABLE}, l2={TABLE: {0: DATA}}, data={DATA: b"d" * CLUSTER})
    )


def flushes_between(log: RecorderStorage, start: int, stop: int) -> int:
    """How many flushes began and ended in this time."""
    flushes = [record for record in log.log if isinstance(record, FlushRecord)]
    return sum(start < flush.begin and flush.ended_before(stop) for flush in flushes)


# ------------------------------------------------- Q6: what makes QEMU abort with many in flight


async def test_quirk_q6_writethrough_at_depth_64_holds() -> None:
    recorder = RecorderStorage(MemoryStorage(image(4 * MIB)))

    async def write(disk: qedasync.Image, number: int) -> None:
        data = bytes([number + 1]) * 1000
        await disk.pwrite(data, number * 3 * CLUSTER)
        returned = recorder.mark(number).begin
        writes = [record for record in recorder.log if isinstance(record, WriteRecord)]
        written = [record for record in writes if record.data == data]
        assert written
        assert flushes_between(recorder, written[0].begin, returned)

    async with opened(recorder, cache="writethrough") as disk:
        await asyncio.gather(*(write(disk, number) for number in range(64)))
        for number in range(64):
            assert await disk.pread(1000, number * 3 * CLUSTER) == bytes([number + 1]) * 1000


async def test_quirk_q6_write_during_the_clean_timers_flush_waits_and_holds() -> None:
    clock, memory = ManualClock(), with_table()
    storage = FaultStorage(memory)
    async with opened(storage, clock=clock, need_check_timeout=5.0) as disk:
        await disk.pwrite(b"1" * CLUSTER, CLUSTER)
        await asyncio.sleep(0)
        assert disk.features & Features.NEED_CHECK
        storage.add(Fault("pause", op="flush"))
        clock.move(6)
        await storage.wait_paused()
        late = asyncio.create_task(disk.pwrite(b"2" * CLUSTER, 2 * CLUSTER))
        await asyncio.sleep(0)
        assert await disk.pread(1, CLUSTER) == b"1"  # reads go on
        storage.resume()
        await late
        assert disk.features & Features.NEED_CHECK  # set again for the late one
        assert header_of(memory.snapshot()).need_check
        assert await disk.pread(2 * CLUSTER, CLUSTER) == b"1" * CLUSTER + b"2" * CLUSTER
    assert not header_of(memory.snapshot()).need_check


# -------------------------------------------------------------- Q7: NEED_CHECK is durable in time


@pytest.mark.parametrize("content", ["empty", "with a table"])
async def test_quirk_q7_need_check_is_flushed_before_the_first_table_write(content: str) -> None:
    memory = MemoryStorage(image(MIB)) if content == "empty" else with_table()
    recorder = RecorderStorage(memory)
    async with opened(recorder) as disk:
        await disk.pwrite(b"w" * CLUSTER, 5 * CLUSTER)
        writes = [record for record in recorder.log if isinstance(record, WriteRecord)]
    header = next(record for record in writes if record.event is Event.HEADER_UPDATE)
    tables = {Event.L1_UPDATE, Event.L2_UPDATE, Event.L2_ALLOC_WRITE}
    table = next(record for record in writes if record.event in tables)
    assert header_of(header.data).need_check
    assert header.end is not None
    assert flushes_between(recorder, header.end, table.begin) == 1


# ------------------------------------------------ Q8 and §8: who may take NEED_CHECK back, and when


def dirty() -> MemoryStorage:
    return MemoryStorage(image(MIB, features=int(Features.NEED_CHECK)))


async def test_quirk_q8_opening_read_only_reports_need_check_as_on_disk() -> None:
    storage = dirty()
    async with opened(storage, "r") as disk:
        assert disk.features & Features.NEED_CHECK
        assert await disk.pread(512, 0) == bytes(512)
        assert disk.features & Features.NEED_CHECK
    assert header_of(storage.snapshot()).need_check


async def test_quirk_q8_writing_without_check_leaves_need_check_set() -> None:
    storage = dirty()
    clock = ManualClock()
    async with opened(storage, check="never", clock=clock) as disk:
        await disk.pwrite(b"w", 0)
        clock.move(100)
        await disk.flush()
    assert header_of(storage.snapshot()).need_check


@qemu.needs_qemu_7_2
def test_qemu_q8_info_says_that_a_killed_image_is_clean(tmp_path: Path) -> None:
    disk = tmp_path / "q8.qed"
    qemu.create(disk, MIB)
    with qemu.hold(disk) as writer:
        writer.ask("write 0 512")
    assert header_of(disk).need_check
    assert '"dirty-flag": false' in qemu.img("info", "--output=json", "-f", "qed", disk).stdout


async def test_quirk_close_after_failed_flush_leaves_need_check_set() -> None:
    memory = MemoryStorage(image(MIB))
    storage = FaultStorage(memory)
    disk = await qedasync.open("quirk.qed", "r+", storage=storage)
    await disk.pwrite(b"w", 0)
    storage.add(Fault("error", op="flush"))
    with pytest.raises(StorageError):
        await disk.close()
    assert header_of(memory.snapshot()).need_check


async def test_quirk_repair_clears_need_check_after_everything_else() -> None:
    bad = DATA + 100 * CLUSTER
    content = image(
        MIB,
        features=int(Features.NEED_CHECK),
        l1={0: TABLE},
        l2={TABLE: {0: DATA, 1: bad}},
        data={DATA: b"d" * CLUSTER},
    )
    recorder = RecorderStorage(MemoryStorage(content))
    async with opened(recorder) as disk:
        assert not disk.features & Features.NEED_CHECK
        assert await disk.pread(2 * CLUSTER, 0) == b"d" * CLUSTER + bytes(CLUSTER)
    writes = [record for record in recorder.log if isinstance(record, WriteRecord)]
    *repairs, header = writes
    assert repairs
    assert header.event is Event.HEADER_UPDATE
    assert not header_of(header.data).need_check
    assert flushes_between(recorder, max(record.end or 0 for record in repairs), header.begin) >= 1


# ------------------------------------------- Q10: after a failed table write the old mapping stands


@pytest.mark.parametrize("event", [Event.L2_UPDATE, Event.L1_UPDATE, Event.L2_ALLOC_WRITE])
async def test_quirk_q10_failed_table_write_leaves_the_old_mapping(event: Event) -> None:
    memory = with_table() if event is Event.L2_UPDATE else MemoryStorage(image(MIB))
    storage = FaultStorage(memory, Fault("error", event=event))
    pos = 7 * CLUSTER
    async with opened(storage) as disk:
        with pytest.raises(StorageError):
            await disk.pwrite(b"1" * CLUSTER, pos)
        assert await disk.pread(CLUSTER, pos) == bytes(CLUSTER)
        await disk.pwrite(b"2" * CLUSTER, pos)
        assert await disk.pread(CLUSTER, pos) == b"2" * CLUSTER
    async with opened(MemoryStorage(memory.snapshot()), "r") as disk:
        assert await disk.pread(CLUSTER, pos) == b"2" * CLUSTER
        assert (await disk.check()).corruptions == 0


async def test_quirk_q10_table_write_of_unknown_outcome_stops_writes_and_not_reads() -> None:
    memory = with_table()
    storage = FaultStorage(memory, Fault("error", event=Event.L2_UPDATE, once=False))
    disk = await qedasync.open("quirk.qed", "r+", storage=storage)
    with pytest.raises(QEDError):
        await disk.pwrite(b"1" * CLUSTER, CLUSTER)
    storage.clear()
    with pytest.raises(ImageFailed):
        await disk.pwrite(b"2" * CLUSTER, 0)
    assert await disk.pread(CLUSTER, 0) == b"d" * CLUSTER
    with pytest.raises(ImageFailed):
        await disk.close()
    assert header_of(memory.snapshot()).need_check
    async with opened(MemoryStorage(memory.snapshot())) as disk:
        assert await disk.pread(CLUSTER, CLUSTER) == bytes(CLUSTER)


def with_fault(event: str, number: int) -> str:
    """The options of a qemu-io command that opens ``x.qed`` so that one such event fails."""
    return (
        f"open -o driver=qed,file.driver=blkdebug,file.image.filename={{}},"
        f"file.inject-error.0.event={event},file.inject-error.0.errno={number},"
        "file.inject-error.0.once=on"
    )


@qemu.needs_qemu_7_2
def test_qemu_q10_write_after_a_failed_table_write_is_lost(tmp_path: Path) -> None:
    disk = tmp_path / "q10.qed"
    qemu.create(disk, MIB)
    qemu.io(disk, "write -P 1 0 64k")
    said = qemu.run(
        "qemu-io",
        *("-c", with_fault("l2_update", errno.EIO).format(disk)),
        *("-c", "write -P 7 128k 64k", "-c", "write -P 8 128k 64k", "-c", "read -P 8 128k 64k"),
        status=None,
    ).stdout
    assert "wrote 65536/65536" in said
    assert "verification failed" not in said
    assert "verification failed" not in qemu.io(disk, "read -P 0 128k 64k")


# ----------------------------------------------------------- Q11: EAGAIN of the host is no success


@pytest.mark.parametrize("event", [Event.WRITE_AIO, Event.L2_UPDATE])
async def test_quirk_q11_eagain_on_write_is_an_error(event: Event) -> None:
    storage = FaultStorage(with_table(), Fault("error", event=event, errno=errno.EAGAIN))
    async with opened(storage) as disk:
        with pytest.raises(StorageError) as caught:
            await disk.pwrite(b"w" * CLUSTER, CLUSTER)
        assert caught.value.errno == errno.EAGAIN
        assert await disk.pread(CLUSTER, CLUSTER) == bytes(CLUSTER)


@pytest.mark.parametrize("event", [Event.READ_AIO, Event.L2_LOAD])
async def test_quirk_q11_eagain_on_read_is_an_error(event: Event) -> None:
    storage = FaultStorage(with_table(), Fault("error", event=event, errno=errno.EAGAIN))
    async with opened(storage, "r") as disk:
        with pytest.raises(StorageError) as caught:
            await disk.pread(CLUSTER, 0)
        assert caught.value.errno == errno.EAGAIN
        assert await disk.pread(CLUSTER, 0) == b"d" * CLUSTER


@qemu.needs_qemu_7_2
def test_qemu_q11_eagain_on_write_is_success(tmp_path: Path) -> None:
    disk = tmp_path / "q11.qed"
    qemu.create(disk, MIB)
    qemu.io(disk, "write -P 1 0 64k")
    said = qemu.run(
        "qemu-io",
        *("-c", with_fault("write_aio", errno.EAGAIN).format(disk), "-c", "write -P 7 0 64k"),
        status=None,
    ).stdout
    assert "wrote 65536/65536" in said
    assert "verification failed" not in qemu.io(disk, "read -P 1 0 64k")
