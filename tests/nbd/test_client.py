"""Our client: a lost connection, a size that changes, answers that cannot be."""

from __future__ import annotations

import asyncio
import errno
import struct
from pathlib import Path

import pytest

import qedasync
from qedasync import nbd
from tests.nbd.test_cves_client import CONTEXT, Liar, export, lying, refused
from tests.nbd.test_server import SIZE, disk, served

ACK = 1
STATUS = 6  # a chunk of extended block status


def break_link(client: nbd.Client) -> None:
    """As when the server's process has ended."""
    link = client._link.link
    assert link is not None
    link._writer.transport.abort()


# ------------------------------------------------------------ a lost connection


async def test_flush_after_a_lost_connection_with_unflushed_writes_fails_once(
    tmp_path: Path,
) -> None:
    """The server may have died with what it had acknowledged."""
    async with (
        served(tmp_path) as (server, _),
        nbd.connect(server.uri("disk"), reconnect=10) as client,
    ):
        await client.pwrite(b"x", 0)
        break_link(client)
        assert await client.pread(1, 0) == b"x"
        with pytest.raises(qedasync.StorageError, match="may have lost") as caught:
            await client.flush()
        assert caught.value.errno == errno.EIO
        await client.pwrite(b"x", 0)
        await client.flush()


async def test_flush_after_a_lost_connection_with_nothing_unflushed_works(tmp_path: Path) -> None:
    async with (
        served(tmp_path) as (server, _),
        nbd.connect(server.uri("disk"), reconnect=10) as client,
    ):
        await client.pwrite(b"x", 0)
        await client.flush()
        break_link(client)
        await client.flush()


async def test_flush_that_was_in_flight_when_the_connection_was_lost_is_not_believed(
    tmp_path: Path,
) -> None:
    async with (
        served(tmp_path) as (server, image),
        nbd.connect(server.uri("disk"), reconnect=10) as client,
    ):
        await client.pwrite(b"x", 0)
        flushing = asyncio.create_task(client.flush())
        await asyncio.sleep(0)
        break_link(client)
        with pytest.raises(qedasync.StorageError, match="may have lost"):
            await flushing
        assert await image.pread(1, 0) == b"x"


async def test_request_that_the_server_dies_of_is_sent_five_times(tmp_path: Path) -> None:
    deaths = 0

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal deaths
        await Liar({7: export()}, once=True).serve(reader, writer)
        deaths += 1

    async with await asyncio.start_unix_server(die, tmp_path / "s"):
        async with nbd.connect(f"nbd+unix:///d?socket={tmp_path / 's'}", reconnect=60) as client:
            with pytest.raises(qedasync.StorageError, match="lost"):
                await client.pread(1, 0)
    assert deaths == 5


async def test_cancelled_write_sends_what_it_was_given(tmp_path: Path) -> None:
    """Though the caller may use the buffer for something else at once."""
    sent: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    begun, go_on = asyncio.Event(), asyncio.Event()
    length = 8 << 20

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Liar({7: export(length)}).shake(reader, writer)
        begun.set()
        await go_on.wait()
        sent.set_result((await reader.readexactly(28 + length))[28:])
        writer.close()

    async with await asyncio.start_unix_server(take, tmp_path / "s", limit=1 << 16):
        client = await nbd.connect(f"nbd+unix:///d?socket={tmp_path / 's'}")
        buffer = bytearray(b"a" * length)
        writing = asyncio.create_task(client.pwrite(buffer, 0))
        await begun.wait()
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        buffer[:] = b"b" * length
        go_on.set()
        assert (await sent).count(b"a") == length
        await client.close()


# -------------------------------------------------------------- what has failed


async def test_one_failed_part_of_a_split_read_leaves_as_itself(tmp_path: Path) -> None:
    """And not in a group of exceptions."""
    error = struct.pack(">II", 0x67446698, 5) + Liar.COOKIE
    async with (
        lying(tmp_path, Liar({7: export(most=4096)}, error)) as uri,
        nbd.connect(uri) as client,
    ):
        with pytest.raises(qedasync.StorageError) as caught:
            await client.pread(65536, 0)
        assert caught.value.errno == errno.EIO
        assert caught.value.length == 4096


def status(runs: list[tuple[int, int]], count: int, context: int = 1, flags: int = 1) -> bytes:
    body = struct.pack(">II", context, count) + b"".join(struct.pack(">QQ", *run) for run in runs)
    head = struct.pack(">IHH", 0x6E8A278C, flags, STATUS) + Liar.COOKIE
    return head + struct.pack(">QQ", 0, len(body)) + body


@pytest.mark.parametrize(
    "reply",
    [
        status([(4096, 0)], 0),
        status([(4096, 0)], 2),
        status([(4096, 0), (4096, 3)], 1),
        status([], 0),
        status([(4096, 0)], 1, context=2),
        status([(4096, 0)], 1, flags=0) + status([(4096, 0)], 1),
        status([(4096, 0)], 1)[:-1],
    ],
    ids=["none", "more", "fewer", "empty", "unknown context", "twice", "cut off"],
)
async def test_block_status_whose_parts_do_not_fit_ends_the_connection(
    tmp_path: Path, reply: bytes
) -> None:
    context = [(CONTEXT, struct.pack(">I", 1) + b"base:allocation"), (ACK, b"")]
    liar = Liar({11: [(ACK, b"")], 10: context, 7: export()}, reply, once=True)
    async with lying(tmp_path, liar) as uri, nbd.connect(uri) as client:
        with pytest.raises(qedasync.StorageError, match="lost"):
            await client.block_status(0, 8192)


async def test_block_status_with_a_million_runs_takes_little_and_goes_on(tmp_path: Path) -> None:
    """So many are allowed; kept are as many as are of use, and one asks again from there."""
    context = [(CONTEXT, struct.pack(">I", 1) + b"base:allocation"), (ACK, b"")]
    count = 1 << 20
    runs = struct.pack(">QQQQ", 1, 0, 1, 3) * (count // 2)
    head = struct.pack(">IHH", 0x6E8A278C, 1, STATUS) + Liar.COOKIE
    reply = head + struct.pack(">QQII", 0, 8 + len(runs), 1, count) + runs
    liar = Liar({11: [(ACK, b"")], 10: context, 7: export()}, reply)
    async with lying(tmp_path, liar) as uri, nbd.connect(uri) as client:
        told = await client.block_status(0, 70_000)
        assert [run.length for run in told] == [1] * 70_000
        assert [run.zero for run in told[:3]] == [False, True, False]


async def test_answers_to_an_option_that_never_end_are_ended(tmp_path: Path) -> None:
    answers = [(3, bytes(60_000))] * 400
    async with lying(tmp_path, Liar({7: answers})) as uri:
        await refused(uri, "too many answers")


# ------------------------------------------------------------------------- size


async def test_refresh_sees_what_the_server_has_become(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image), nbd.connect(server.uri("disk")) as client:
        await client.pwrite(b"before", 0)
        await image.truncate(2 * SIZE)
        with pytest.raises(qedasync.RequestError, match="not inside"):
            await client.pread(1, SIZE)
        assert await client.refresh() == 2 * SIZE
        assert await client.pwrite(b"after", 2 * SIZE - 5) == 5
        assert await client.pread(6, 0) == b"before"
        await client.flush()
        assert await image.pread(5, 2 * SIZE - 5) == b"after"
        assert server.connections == 1


async def test_refresh_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image), nbd.connect(server.uri("disk")) as client:
        async with image._engine.queue.turn:
            writing = asyncio.create_task(client.pwrite(b"x" * 100, 0))
            await asyncio.sleep(0.01)
            refreshing = asyncio.create_task(client.refresh())
            await asyncio.sleep(0.01)
            assert not refreshing.done()
        assert await writing == 100
        assert await refreshing == SIZE
        assert server.counters.accepted == 2


async def test_refresh_that_the_server_does_not_allow_leaves_the_client_as_it_was(
    tmp_path: Path,
) -> None:
    limits = nbd.Limits(connections=1)
    async with (
        served(tmp_path, limits=limits) as (server, _),
        nbd.connect(server.uri("disk")) as client,
    ):
        with pytest.raises(qedasync.StorageError):
            await client.refresh()
        assert await client.pread(1, 0) == b"\0"


async def test_truncate_is_content_once_the_server_has_grown(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, image), nbd.connect(server.uri("disk")) as client:
        with pytest.raises(qedasync.RequestError, match="resized"):
            await client.truncate(SIZE + 512)
        await image.truncate(SIZE + 4096)
        await client.truncate(SIZE + 512)
        assert client.size == SIZE + 4096
        with pytest.raises(qedasync.RequestError, match="resized"):
            await client.truncate(SIZE)


async def test_reconnected_client_knows_the_new_size(tmp_path: Path) -> None:
    async with (
        served(tmp_path) as (server, image),
        nbd.connect(server.uri("disk"), reconnect=10) as client,
    ):
        await image.truncate(2 * SIZE)
        break_link(client)
        assert await client.pread(1, 0) == b"\0"
        assert client.size == 2 * SIZE


# ------------------------------------------------------------------ all exports


async def test_list_exports_tells_what_a_server_has(tmp_path: Path) -> None:
    async with disk() as one, disk(1 << 20) as two:
        exports: dict[str, qedasync.Disk | nbd.Export]
        exports = {"one": one, "two": nbd.Export("two", two, description="words", readonly=True)}
        async with nbd.serve(exports, path=tmp_path / "s") as server:
            first, second = await nbd.list_exports(server.uri())
        assert (first.name, first.facts.size) == ("one", SIZE)
        assert first.contexts == ("base:allocation", "qemu:allocation-depth")
        assert (second.name, second.facts.description) == ("two", "words")
        assert second.facts.flags & 2, "read-only"
        assert second.told_block_sizes


@pytest.mark.parametrize(
    "entry",
    [b"\0\0\0", struct.pack(">I", 5) + b"name", struct.pack(">I", 1) + b"\xff"],
    ids=["short", "long", "no text"],
)
async def test_list_exports_with_a_name_that_cannot_be_is_refused(
    tmp_path: Path, entry: bytes
) -> None:
    async with lying(tmp_path, Liar({3: [(2, entry), (ACK, b"")]})) as uri:
        with pytest.raises(qedasync.StorageError, match="a name"):
            await nbd.list_exports(uri)


async def test_list_exports_that_a_server_does_not_tell_is_a_clear_error(tmp_path: Path) -> None:
    async with lying(tmp_path, Liar({})) as uri:
        with pytest.raises(qedasync.StorageError, match="does not list"):
            await nbd.list_exports(uri)
