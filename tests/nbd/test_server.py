"""Our server and our client, and clients that do not behave."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

import qedasync
from qedasync import nbd
from qedasync.events import Event
from qedasync.nbd.wire import TransmissionFlag
from qedasync.storage.faults import Fault, FaultStorage
from tests.nbd.talk import GREETING, flags, go, meta, option, request

SIZE = 8 << 20


@asynccontextmanager
async def disk(size: int = SIZE, mode: str = "r+") -> AsyncIterator[qedasync.Image]:
    storage = qedasync.MemoryStorage()
    await qedasync.create("disk.qed", size, cluster_size=4096, storage=storage)
    async with qedasync.open("disk.qed", mode, storage=storage) as image:  # type: ignore[arg-type]
        yield image


@asynccontextmanager
async def served(path: Path, **wish: object) -> AsyncIterator[tuple[nbd.Server, qedasync.Image]]:
    async with (
        disk() as image,
        nbd.serve({"disk": image}, path=path / "s", **wish) as server,  # type: ignore[arg-type]
    ):
        yield server, image


@asynccontextmanager
async def raw_client(
    server: nbd.Server, *sent: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that has sent its flags and then these bytes."""
    reader, writer = await asyncio.open_unix_connection(server.addresses[0])
    try:
        assert await reader.readexactly(18) == GREETING
        writer.write(flags() + b"".join(sent))
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def entered(reader: asyncio.StreamReader) -> None:
    """Pass over the answers up to the one that GO ends with."""
    while True:
        _, number, kind, length = struct.unpack(">QIII", await reader.readexactly(20))
        await reader.readexactly(length)
        if (number, kind) == (7, 1):
            return


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until something holds."""
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to hold")


async def test_client_reads_what_it_wrote_concurrently(tmp_path: Path) -> None:
    random = Random(1)
    model = bytearray(SIZE)
    async with served(tmp_path) as (server, image), nbd.connect(server.uri("disk")) as client:
        for _ in range(20):
            spots = sorted(random.sample(range(SIZE // 4096 - 40), 16))
            async with asyncio.TaskGroup() as group:
                end = 0
                for spot in spots:
                    pos = max(end, spot * 4096 + random.randrange(4096))
                    data = random.randbytes(random.choice([1, 511, 4096, 100_000]))[: SIZE - pos]
                    model[pos : pos + len(data)] = data
                    end = pos + len(data)
                    group.create_task(client.pwrite(data, pos))
        await client.flush()
        assert await client.pread(SIZE, 0) == model
        assert await image.pread(SIZE, 0) == model


async def test_zero_trim_and_status_reach_the_disk(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image), nbd.connect(server.uri("disk")) as client:
        await client.pwrite(b"x" * 65536, 0)
        await client.write_zeroes(8192, 4096)
        await client.write_zeroes(4096, 20480, keep=True)
        await client.discard(4096, 32768)
        runs = [(run.start, run.length, run.zero) for run in await client.block_status(0, SIZE)]
        assert runs == [(0, 65536, False), (65536, SIZE - 65536, True)], "mapped clusters stay"
        await client.write_zeroes(4096, 1 << 20)
        assert (await client.block_status(1 << 20, 4096))[0].zero
        assert await client.pread(4096, 20480) == bytes(4096)
        assert client.contexts == ("base:allocation", "qemu:allocation-depth")
        assert await image.pread(8192, 4096) == bytes(8192)


async def test_long_read_of_a_sparse_disk_sends_holes(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, _), nbd.connect(server.uri("disk")) as client:
        await client.pwrite(b"x" * 4096, 4096 * 700)
        data = await client.pread(SIZE, 0)
        assert data == bytes(4096 * 700) + b"x" * 4096 + bytes(SIZE - 4096 * 701)


@pytest.mark.parametrize("extended", [False, True])
async def test_read_only_export_refuses_writes(tmp_path: Path, extended: bool) -> None:
    async with disk(mode="r") as image, nbd.serve({"": image}, path=tmp_path / "s") as server:
        async with nbd.connect(server.uri()) as client:
            assert client.readonly
            assert not client.flags & TransmissionFlag.SEND_TRIM
            with pytest.raises(qedasync.ReadOnly):
                await client.pwrite(b"x", 0)
        sent = [option(11 if extended else 8), go(b"")]
        write = request(1, 0, 1, payload=b"x", extended=extended)
        async with raw_client(server, *sent, write) as (reader, _):
            await entered(reader)
            head = await reader.readexactly(32 if extended else 20)
            assert struct.unpack_from(">IHH", head)[1:] == (1, 0x8001)
            assert struct.unpack(">I", await reader.readexactly(4)) == (1,), "EPERM"


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (request(0, SIZE, 1), 22),
        (request(0, SIZE - 1, 2), 22),
        (request(0, 1 << 63, 1), 22),
        (request(0, (1 << 64) - 1, 0xFFFFFFFF), 75),
        (request(0, 0, (32 << 20) + 1), 75),
        (request(1, SIZE, 1, payload=b"x"), 28),
        (request(4, SIZE, 1), 28),
        (request(6, 0, 1, flags=1 << 6), 22),
        (request(1, 0, 1, flags=2, payload=b"x"), 22),
        (request(3, 1, 0), 22),
        (request(7, 0, 0), 22),
        (request(7, 0, 1), 22),
        (request(8, 0, 1), 22),
        (request(99, 0, 1), 22),
    ],
)
async def test_request_that_cannot_be_is_answered_and_the_next_one_works(
    tmp_path: Path, bad: bytes, error: int
) -> None:
    async with (
        served(tmp_path) as (server, _),
        raw_client(server, go(b"disk"), bad, request(3, 0, 0, cookie=9)) as (reader, _),
    ):
        await entered(reader)
        assert struct.unpack(">IIQ", await reader.readexactly(16)) == (0x67446698, error, 1)
        assert struct.unpack(">IIQ", await reader.readexactly(16)) == (0x67446698, 0, 9)


async def test_request_magic_wrong_ends_this_client_alone(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, _), nbd.connect(server.uri("disk")) as other:
        async with raw_client(server, go(b"disk"), b"\0" * 28) as (reader, _):
            await entered(reader)
            assert await reader.read() == b""
        assert await other.pread(512, 0) == bytes(512)
        assert server.counters.failed == 1


async def test_reads_of_one_client_are_answered_out_of_order(tmp_path: Path) -> None:
    """A write that has to wait does not hold up the read behind it."""
    async with (
        served(tmp_path) as (server, image),
        raw_client(server, go(b"disk")) as (reader, writer),
    ):
        await entered(reader)
        await image.pwrite(b"d" * 4096, 0)
        async with image._engine.queue.turn:
            writer.write(request(1, 1 << 20, 1, cookie=1, payload=b"x"))
            writer.write(request(0, 0, 4, cookie=2))
            assert struct.unpack(">IIQ", await reader.readexactly(16))[2] == 2
            assert await reader.readexactly(4) == b"dddd"
        assert struct.unpack(">IIQ", await reader.readexactly(16))[2] == 1


async def test_replies_of_one_batch_leave_before_its_last_request_is_done(tmp_path: Path) -> None:
    """So that the client works while the server does; and what is sent stays whole."""
    answered: list[bool] = []

    class Looking:
        """A disk that looks, at the last read, whether the client has been sent anything."""

        def __getattr__(self, name: str) -> Any:
            return getattr(image, name)

        def try_pread(self, length: int, offset: int) -> bytearray | None:
            if offset == 15:
                answered.append(bool(select.select([socket], [], [], 0)[0]))
            return image.try_pread(length, offset)

    async with disk() as image, nbd.serve({"disk": Looking()}, path=tmp_path / "s") as server:
        await image.pwrite(bytes(range(16)), 0)
        assert await image.pread(16, 0) == bytes(range(16))  # so that all is at hand
        async with raw_client(server, go(b"disk")) as (reader, writer):
            await entered(reader)
            socket = writer.get_extra_info("socket").fileno()
            writer.write(b"".join(request(0, n, 1, cookie=n) for n in range(16)))
            for n in range(16):
                told = struct.unpack(">IIQB", await reader.readexactly(17))
                assert told == (0x67446698, 0, n, n)
    assert answered == [True]


async def test_slow_client_is_not_read_from_and_stalls_nobody(tmp_path: Path) -> None:
    limits = nbd.Limits(requests_in_flight=4, bytes_in_flight=1 << 20)
    reads = b"".join(request(0, 0, 1 << 20, cookie=n) for n in range(200))
    async with (
        served(tmp_path, limits=limits) as (server, _),
        raw_client(server, go(b"disk"), reads),
        nbd.connect(server.uri("disk")) as other,
    ):
        for n in range(50):
            assert await other.pread(512, 512 * n) == bytes(512)
        assert server.counters.bytes_in_flight <= 4 << 20


async def test_more_requests_than_may_be_in_flight_are_all_answered(tmp_path: Path) -> None:
    limits = nbd.Limits(requests_in_flight=3)
    writes = [request(1, n << 16, 4, cookie=n, payload=b"data") for n in range(20)]
    async with (
        served(tmp_path, limits=limits) as (server, image),
        raw_client(server, go(b"disk"), *writes) as (reader, _),
    ):
        await entered(reader)
        told = [struct.unpack(">IIQ", await reader.readexactly(16)) for _ in writes]
        assert sorted(told) == [(0x67446698, 0, n) for n in range(20)]
        assert await image.pread(4, 19 << 16) == b"data"


@pytest.mark.parametrize("structured", [False, True])
async def test_long_reads_of_a_slow_client_leave_whole_among_short_ones(
    tmp_path: Path, structured: bool
) -> None:
    """A long reply waits for the client, and what is short does not get into the middle of it."""
    length = 1 << 20
    reads = [request(0, n << 10, length, cookie=n) for n in range(5)]
    short = [request(0, 512 * n, 512, cookie=100 + n) for n in range(20)]
    sent = [*([option(8)] if structured else []), go(b"disk"), *reads]
    async with served(tmp_path) as (server, image):
        content = Random(5).randbytes(length + (5 << 10))
        await image.pwrite(content, 0)
        async with raw_client(server, *sent) as (reader, writer):
            await entered(reader)
            for one in short:
                writer.write(one)
                await asyncio.sleep(0)
            left = {n: (n << 10, length) for n in range(5)}
            left |= {100 + n: (512 * n, 512) for n in range(20)}
            while left:
                if structured:
                    _, flags, kind, cookie, size = struct.unpack(
                        ">IHHQI", await reader.readexactly(20)
                    )
                    (offset,) = struct.unpack(">Q", await reader.readexactly(8))
                    assert kind == 1
                    size -= 8
                else:
                    _, _, cookie = struct.unpack(">IIQ", await reader.readexactly(16))
                    flags, (offset, size) = 1, left[cookie]
                assert left[cookie][0] == offset
                assert await reader.readexactly(size) == content[offset : offset + size]
                left[cookie] = offset + size, left[cookie][1] - size
                if flags:
                    assert left.pop(cookie)[1] == 0


async def test_long_reads_of_a_client_that_lags_behind_wait_in_no_buffer(tmp_path: Path) -> None:
    """What is not read yet takes no memory; all of it is read when the client has caught up."""
    length, count = 256 << 10, 100
    reads = [request(0, n << 10, length, cookie=n) for n in range(count)]
    async with served(tmp_path) as (server, image):
        content = Random(7).randbytes(length + (count << 10))
        await image.pwrite(content, 0)
        async with raw_client(server, go(b"disk"), *reads) as (reader, _):
            await until(lambda: server.counters.inline_reads > 0)
            await asyncio.sleep(0.05)
            assert server.counters.inline_reads < count // 2
            assert server.counters.bytes_in_flight == 0
            await entered(reader)
            for _ in range(count):
                _, error, cookie = struct.unpack(">IIQ", await reader.readexactly(16))
                assert error == 0
                start = cookie << 10
                assert await reader.readexactly(length) == content[start : start + length]


async def test_long_reads_beyond_the_work_of_a_turn_wait_for_the_next_one_in_no_task(
    tmp_path: Path,
) -> None:
    length, count = 128 << 10, 7
    reads = [request(0, n, 1, cookie=n) for n in range(249)]
    reads += [request(0, n << 12, length, cookie=n) for n in range(count)]
    async with served(tmp_path) as (server, image):
        content = Random(9).randbytes(length + (count << 12))
        await image.pwrite(content, 0)
        assert await image.pread(len(content), 0) == content  # so that all is at hand
        async with raw_client(server, go(b"disk")) as (reader, writer):
            await entered(reader)
            image.renew_soon()
            await asyncio.sleep(0)
            writer.write(b"".join(reads))
            await reader.readexactly(249 * 17)
            for n in range(count):
                assert struct.unpack(">IIQ", await reader.readexactly(16)) == (0x67446698, 0, n)
                assert await reader.readexactly(length) == content[n << 12 : (n << 12) + length]
        assert server.counters.inline_reads == 249 + count
        assert server.counters.requests == {}


async def test_long_read_of_a_client_that_has_left_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image):
        await image.pwrite(b"x" * SIZE, 0)
        sent = [option(8), go(b"disk"), request(0, 0, SIZE)]
        async with raw_client(server, *sent) as (reader, writer):
            await entered(reader)
            await until(lambda: server.counters.in_flight > 0)
            writer.transport.abort()
        await until(lambda: not server.counters.in_flight)


async def test_client_that_takes_its_time_over_the_handshake_is_hung_up_on(tmp_path: Path) -> None:
    async with (
        served(tmp_path, limits=nbd.Limits(handshake_seconds=0.05)) as (server, _),
        raw_client(server) as (reader, _),
    ):
        assert await reader.read() == b""
        assert server.counters.failed == 1


async def test_too_many_clients_the_last_one_is_hung_up_on(tmp_path: Path) -> None:
    async with (
        served(tmp_path, limits=nbd.Limits(connections=1)) as (server, _),
        nbd.connect(server.uri("disk")) as first,
    ):
        with pytest.raises(qedasync.StorageError):
            await nbd.connect(server.uri("disk"))
        assert await first.pread(1, 0) == b"\0"
        assert server.counters.refused == 1


async def test_clients_beyond_the_limit_wait_in_the_order_of_their_coming(tmp_path: Path) -> None:
    limits = nbd.Limits(connections=1, waiting=2)
    async with served(tmp_path, limits=limits) as (server, _):
        first = await nbd.connect(server.uri("disk"))
        waiting = []
        for _ in range(2):
            waiting.append(asyncio.create_task(nbd.connect(server.uri("disk")).__aenter__()))
            await asyncio.sleep(0.02)
        with pytest.raises(qedasync.StorageError):
            await nbd.connect(server.uri("disk"))
        assert (server.connections, server.counters.refused) == (1, 1)
        await first.close()
        second = await waiting[0]
        assert await second.pread(1, 0) == b"\0"
        assert not waiting[1].done()
        await second.close()
        third = await waiting[1]
        assert await third.pread(1, 0) == b"\0"
        await third.close()


async def test_waiting_client_that_leaves_or_speaks_out_of_turn_is_forgotten(
    tmp_path: Path,
) -> None:
    limits = nbd.Limits(connections=1, waiting=2)
    async with served(tmp_path, limits=limits) as (server, _):
        async with nbd.connect(server.uri("disk")):
            _, leaver = await asyncio.open_unix_connection(server.addresses[0])
            heard, speaker = await asyncio.open_unix_connection(server.addresses[0])
            speaker.write(flags())
            assert await heard.read() == b""
            for writer in (leaver, speaker):
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
            await until(lambda: not server._waiting)
        async with nbd.connect(server.uri("disk")) as client:
            assert await client.pread(1, 0) == b"\0"


async def test_close_hangs_up_on_those_who_wait(tmp_path: Path) -> None:
    limits = nbd.Limits(connections=1, waiting=2)
    async with served(tmp_path, limits=limits) as (server, _):
        async with raw_client(server) as _:
            heard, writer = await asyncio.open_unix_connection(server.addresses[0])
            await until(lambda: bool(server._waiting))
            await server.close()
            with suppress(OSError):
                assert await heard.read() == b""
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def test_unknown_export_is_a_clear_error(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, _):
        with pytest.raises(qedasync.StorageError, match="'nothing'") as caught:
            await nbd.connect(server.uri("nothing"))
        assert caught.value.errno == errno.ENOENT


async def test_close_answers_what_is_in_flight_and_flushes(tmp_path: Path) -> None:
    async with disk() as image:
        server = await nbd.serve({"disk": image}, path=tmp_path / "s")
        async with raw_client(server, go(b"disk")) as (reader, writer):
            await entered(reader)
            async with image._engine.queue.turn:
                writer.write(request(1, 0, 4, cookie=5, payload=b"data"))
                await until(lambda: server.counters.in_flight == 1)
                closing = asyncio.create_task(server.close())
                await asyncio.sleep(0.01)
                assert not closing.done()
            await closing
            assert struct.unpack(">IIQ", await reader.readexactly(16)) == (0x67446698, 0, 5)
            assert await reader.read() == b""
        assert await image.pread(4, 0) == b"data"
        assert not (tmp_path / "s").exists()


async def test_close_waits_for_writes_into_new_clusters_that_no_task_waits_for(
    tmp_path: Path,
) -> None:
    async with disk() as image:
        server = await nbd.serve({"disk": image}, path=tmp_path / "s")
        await image.pwrite(b"data", 0)
        assert await image.pread(4, 0) == b"data"  # so that the table is at hand
        async with raw_client(server, go(b"disk")) as (reader, writer):
            await entered(reader)
            async with image._engine.queue.turn:
                for n in (1, 2):
                    writer.write(request(1, n << 12, 4, cookie=n, payload=b"more"))
                await until(lambda: server.counters.in_flight == 2)
                assert not server._tasks
                closing = asyncio.create_task(server.close())
                await asyncio.sleep(0.01)
                assert not closing.done()
            await closing
            for n in (1, 2):
                assert struct.unpack(">IIQ", await reader.readexactly(16)) == (0x67446698, 0, n)
            assert await reader.read() == b""
        assert await image.pread(4, 2 << 12) == b"more"
        assert server.counters.requests == {"write": 2}


async def test_write_into_a_new_cluster_that_fails_is_answered_with_its_error(
    tmp_path: Path,
) -> None:
    storage = FaultStorage(qedasync.MemoryStorage())
    await qedasync.create("disk.qed", SIZE, cluster_size=4096, storage=storage)
    async with (
        qedasync.open("disk.qed", "r+", storage=storage) as image,
        nbd.serve({"disk": image}, path=tmp_path / "s") as server,
        raw_client(server, go(b"disk")) as (reader, writer),
    ):
        await image.pwrite(b"data", 0)
        assert await image.pread(4, 0) == b"data"
        await entered(reader)
        storage.add(Fault("error", event=Event.WRITE_AIO, errno=errno.ENOSPC))
        for n in (1, 2):
            writer.write(request(1, n << 12, 4, cookie=n, payload=b"more"))
            told = struct.unpack(">IIQ", await reader.readexactly(16))
            assert told == (0x67446698, errno.ENOSPC if n == 1 else 0, n)
        assert server.counters.in_flight == server.counters.bytes_in_flight == 0


async def test_client_vanishes_amid_writes_and_the_disk_is_sound(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image):
        for n in range(10):
            async with raw_client(server, go(b"disk")) as (reader, writer):
                await entered(reader)
                for m in range(20):
                    writer.write(request(1, (n * 20 + m) * 4096, 4096, payload=b"w" * 4096))
                writer.write(request(1, 0, 1 << 20, payload=b"half of it"))
                writer.transport.abort()
        await until(lambda: not server.connections and not server.counters.in_flight)
        result = await image.check()
        assert (result.corruptions, result.leaks) == (0, 0)


async def test_status_with_one_run_and_with_depth(tmp_path: Path) -> None:
    sent = [option(8), meta(10, b"disk", b"qemu:allocation-depth"), go(b"disk")]
    async with served(tmp_path) as (server, image), raw_client(server, *sent) as (reader, writer):
        await entered(reader)
        await image.pwrite(b"x" * 4096, 4096)
        for one, runs in ((8, 1), (0, 3)):
            writer.write(request(7, 0, SIZE, flags=one))
            *_, length = struct.unpack(">IHHQI", await reader.readexactly(20))
            body = await reader.readexactly(length)
            told = [struct.unpack_from(">II", body, at) for at in range(4, len(body), 8)]
            assert told == [(4096, 0), (4096, 1), (SIZE - 8192, 0)][:runs]


async def test_export_that_has_grown_is_told_of_as_it_is_now(tmp_path: Path) -> None:
    """Though the client had come before."""
    async with served(tmp_path) as (server, image), raw_client(server) as (reader, writer):
        await until(lambda: server.connections == 1)
        await image.truncate(2 * SIZE)
        writer.write(go(b"disk"))
        await reader.readexactly(20 + 14)  # the block sizes
        *_, length = struct.unpack(">QIII", await reader.readexactly(20))
        what, size, _ = struct.unpack(">HQH", await reader.readexactly(length))
        assert (what, size) == (0, 2 * SIZE)


async def test_requests_are_held_against_the_size_of_now(tmp_path: Path) -> None:
    """A client that knows of the new size from elsewhere need not connect again."""
    async with (
        served(tmp_path) as (server, image),
        raw_client(server, go(b"disk")) as (reader, writer),
    ):
        await entered(reader)
        for error in (28, 0):
            writer.write(request(1, SIZE, 1, payload=b"x"))
            assert struct.unpack(">IIQ", await reader.readexactly(16))[1] == error
            await image.truncate(2 * SIZE)


async def test_two_exports_are_two_disks(tmp_path: Path) -> None:
    async with disk() as one, disk(1 << 20) as two:
        exports: dict[str, qedasync.Disk | nbd.Export]
        exports = {"one": one, "two": nbd.Export("two", two, description="second", readonly=True)}
        async with nbd.serve(exports, path=tmp_path / "s") as server:
            async with nbd.connect(server.uri("one")) as a, nbd.connect(server.uri("two")) as b:
                await a.pwrite(b"x", 0)
                assert (a.size, b.size) == (SIZE, 1 << 20)
                assert await b.pread(1, 0) == b"\0"
                assert b.readonly
                assert b.description == "second"
            with pytest.raises(qedasync.StorageError):
                await nbd.connect(server.uri(""))


async def test_cancelled_read_leaves_the_client_usable(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image), nbd.connect(server.uri("disk")) as client:
        async with image._engine.queue.turn:
            write = asyncio.create_task(client.pwrite(b"x" * 100, 0))
            await asyncio.sleep(0.01)
            write.cancel()
            await asyncio.wait([write])
        await client.flush()
        assert await client.pread(100, 0) == b"x" * 100, "it had begun"


async def test_tcp_on_a_free_port(tmp_path: Path) -> None:
    async with disk() as image, nbd.serve({"d": image}, port=0) as server:
        async with nbd.connect(f"nbd://127.0.0.1:{server.port}/d") as client:
            assert await client.pwrite(b"abc", 1) == 3
            assert await client.pread(5, 0) == b"\0abc\0"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has names that are no files")
async def test_abstract_socket_is_one_without_a_file() -> None:
    name = f"\0qedasync-{os.getpid()}-{os.urandom(4).hex()}"
    async with disk() as image, nbd.serve({"d": image}, path=name) as server:
        async with nbd.connect(server.uri("d")) as client:
            assert await client.pread(1, 0) == b"\0"


async def test_image_inside_an_export_opens(tmp_path: Path) -> None:
    """A QED image on a disk that is served; it takes new clusters once the server has grown it."""
    file = tmp_path / "inner.qed"
    await qedasync.create(file, "1M", cluster_size=4096)
    async with qedasync.open(file, "r+") as image:
        await image.pwrite(b"x" * 20_000, 10_000)
    async with served(tmp_path) as (server, outer), nbd.connect(server.uri("disk")) as client:
        await client.pwrite(file.read_bytes(), 0)
        inner = qedasync.DiskStorage(await nbd.connect(server.uri("disk")))
        async with qedasync.open("inner", "r+", storage=inner) as image:
            await image.pwrite(b"nested", 12345)
            await image.flush()
            assert await image.pread(10, 12343) == b"xxnestedxx"
            with pytest.raises(qedasync.StorageError, match="resized"):
                await image.pwrite(b"new", 500_000)
            await outer.truncate(2 * SIZE)
            await image.pwrite(b"new", 500_000)
            assert await image.pread(3, 500_000) == b"new"
            assert (await image.check()).corruptions == 0
