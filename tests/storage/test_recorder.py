"""The recorder: the log is complete, ordered, and a copy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.aiofiles import AiofilesStorage
from qedasync.storage.base import Write
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import (
    FlushRecord,
    GrowRecord,
    Mark,
    RecorderStorage,
    TruncateRecord,
    WriteRecord,
    ZeroesRecord,
)


async def test_log_has_every_change_in_order() -> None:
    recorder = RecorderStorage(MemoryStorage(b"abc"))
    await recorder.write([b"x", b"yz"], 1, Event.L1_UPDATE)
    await recorder.write_zeroes(0, 2)
    recorder.mark("here")
    await recorder.truncate(2)
    await recorder.flush()
    await recorder.read_into([bytearray(2)], 0)
    write, zeroes, mark, truncate, flush = recorder.log
    assert isinstance(write, WriteRecord)
    assert (write.offset, write.data, write.event) == (1, b"xyz", Event.L1_UPDATE)
    assert isinstance(zeroes, ZeroesRecord)
    assert (zeroes.offset, zeroes.length) == (0, 2)
    assert isinstance(mark, Mark)
    assert mark.value == "here"
    assert isinstance(truncate, TruncateRecord)
    assert truncate.size == 2
    assert isinstance(flush, FlushRecord)
    times = [time for record in recorder.log for time in (record.begin, record.end)]
    assert times == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert recorder.position == 9


async def test_write_record_is_a_copy() -> None:
    recorder = RecorderStorage(MemoryStorage())
    buffer = bytearray(b"abc")
    await recorder.write([buffer], 0)
    buffer[:] = b"..."
    assert isinstance(recorder.log[0], WriteRecord)
    assert recorder.log[0].data == b"abc"


async def test_write_many_is_one_record_for_each_write_and_one_for_the_growth() -> None:
    recorder = RecorderStorage(MemoryStorage(b"abc"))
    writes = [Write(n, [b"x"], 1, Event.L2_UPDATE) for n in range(2)]
    await recorder.write_many(writes, grow_to=9)
    await recorder.write_many(writes, grow_to=4)
    kinds = [type(record) for record in recorder.log]
    assert kinds == [GrowRecord, WriteRecord, WriteRecord, WriteRecord, WriteRecord]
    assert recorder.size == 9


async def test_calls_at_the_same_time_overlap_in_the_log() -> None:
    recorder = RecorderStorage(MemoryStorage(inline=False))
    await asyncio.gather(recorder.write([b"a"], 0), recorder.flush())
    write, flush = recorder.log
    assert write.begin < flush.begin
    assert write.end is not None
    assert flush.begin < write.end


async def test_failed_call_is_marked() -> None:
    recorder = RecorderStorage(FaultStorage(MemoryStorage(), Fault("error", op="write")))
    with pytest.raises(StorageError):
        await recorder.write([b"a"], 0)
    await recorder.write([b"b"], 0)
    assert [record.failed for record in recorder.log] == [True, False]
    assert [record.end for record in recorder.log] == [1, 3]


async def test_cancelled_call_is_marked_failed() -> None:
    recorder = RecorderStorage(MemoryStorage(inline=False))
    task = asyncio.create_task(recorder.write([b"a"], 0))
    await asyncio.sleep(0)
    assert recorder.log[0].end is None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.log[0].failed
    assert recorder.log[0].end == 1


async def test_base_of_a_memory_storage_is_a_copy_of_its_content() -> None:
    recorder = RecorderStorage(MemoryStorage(b"abc"))
    await recorder.write([b"x"], 0)
    assert bytes(recorder.base) == b"abc"


async def test_over_reads_the_file_as_it_is(tmp_path: Path) -> None:
    data = bytes(100_000) + b"abc" * 400_000
    path = tmp_path / "old.img"
    path.write_bytes(data)
    recorder = await RecorderStorage.over(await AiofilesStorage.open(path, writable=True))
    await recorder.truncate(0)
    await recorder.close()
    assert bytes(recorder.base) == data


async def test_over_a_sparse_file_of_a_terabyte_is_quick() -> None:
    inner = MemoryStorage(b"abc")
    await inner.truncate(1 << 40)
    await inner.write([b"end"], (1 << 40) - 3)
    base = (await RecorderStorage.over(FaultStorage(inner))).base
    assert base.size == 1 << 40
    tail = bytearray(4)
    base.read_into(tail, (1 << 40) - 4)
    assert tail == b"\0end"


async def test_recorder_of_an_unread_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"abc")
    storage = await AiofilesStorage.open(path)
    with pytest.raises(ValueError, match="over"):
        RecorderStorage(storage)
    await storage.close()
