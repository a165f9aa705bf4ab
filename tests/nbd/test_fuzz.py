"""Mutated byte streams for both sides: no traceback, no hang, memory within bounds.

The normal run has 5000 streams in all; ``QEDASYNC_FUZZ_STREAMS=200000 pytest -m slow`` as many as
one likes.
"""

from __future__ import annotations

import asyncio
import os
import struct
import tracemalloc
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

import qedasync
from qedasync import nbd
from qedasync.nbd.connection import Connection
from tests.nbd.talk import flags, go, meta, option, request
from tests.nbd.test_server import disk, until

SERVER_STREAMS, CLIENT_STREAMS = 4000, 1280
AT_ONCE = 16
WANTED = int(os.environ.get("QEDASYNC_FUZZ_STREAMS", "200000"))
MEMORY = 96 << 20
"""More than one connection may have in flight: its cap, and a request on top."""


class Wire:
    """A transport that keeps what is sent, and counts."""

    def __init__(self, protocol: Connection) -> None:
        self.sent = bytearray()
        self.closed = False
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.sent += data[:4096]

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def good_stream(random: Random) -> bytes:
    """A handshake and some requests, as a decent client sends them."""
    extended = random.random() < 0.3
    out = [flags()]
    if random.random() < 0.8:
        out.append(option(11 if extended else 8))
        out.append(meta(10, b"disk", b"base:allocation", b"qemu:allocation-depth"))
    else:
        extended = False
    out.append(random.choice([go(b"disk", 3), go(b"disk"), option(1, b"disk")]))
    for cookie in range(random.randrange(8)):
        command = random.choice([0, 0, 1, 1, 3, 4, 5, 6, 7, 2])
        offset, length = random.randrange(1 << 23), random.choice([0, 1, 512, 4096, 100_000])
        data = random.randbytes(length) if command == 1 else b""
        out.append(request(command, offset, length, cookie=cookie, payload=data, extended=extended))
    return b"".join(out)


def mutated(random: Random, stream: bytes) -> bytes:
    """The same, damaged in a few ways."""
    data = bytearray(stream)
    for _ in range(random.choice([0, 1, 1, 2, 5])):
        if not data:
            break
        at = random.randrange(len(data))
        kind = random.randrange(6)
        if kind == 0:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + 4] = struct.pack(
                ">I", random.choice([0, 1, 0xFFFF, 1 << 31, 0xFFFFFFFF])
            )
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + random.randrange(1, 64)]
        elif kind == 4:
            data[at:at] = random.randbytes(random.randrange(1, 64))
        else:
            data[at:at] = data[at : at + random.randrange(1, 64)]
    return bytes(data)


async def feed(server: nbd.Server, random: Random) -> None:
    """One client with one stream, cut anywhere."""
    connection = Connection(server)
    wire = Wire(connection)
    connection.connection_made(wire)  # type: ignore[arg-type]
    data = memoryview(mutated(random, good_stream(random)))
    while data and not wire.closed:
        into = connection.get_buffer(-1)
        count = min(len(into), len(data), random.choice([1, 7, 100, 1 << 20]))
        assert count
        into[:count] = data[:count]
        connection.buffer_updated(count)
        data = data[count:]
        if random.random() < 0.05:
            await asyncio.sleep(0)
    wire.close()
    await asyncio.sleep(0)


async def fuzz_server(seed: int, count: int) -> None:
    asyncio.get_running_loop().set_debug(False)
    random = Random(seed)
    async with disk() as image, nbd.serve({"disk": image}, port=0) as server:
        tracemalloc.start()
        try:
            for number in range(count):
                try:
                    await feed(server, random)
                except BaseException as error:
                    error.add_note(f"seed {seed}, stream {number}")
                    raise
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        await until(lambda: not server.counters.in_flight)
        assert server.connections == 0
        assert server.counters.accepted == count
        assert peak < MEMORY
        async with nbd.connect(server.uri("disk")) as client:
            await client.pread(4096, 0)
        assert (await image.check()).corruptions == 0


async def test_fuzzed_clients_end_and_the_server_lives(request: pytest.FixtureRequest) -> None:
    uvloop_runs = "uvloop" in request.node.name
    await fuzz_server(2 if uvloop_runs else 1, SERVER_STREAMS // 2)


class Recorder:
    """What a real server of ours said to a client of ours, to be said again, damaged.

    Attributes:
        said: in pieces, each with how many bytes the client had sent before.
    """

    def __init__(self) -> None:
        self.said = [(0, b"")]

    async def record(self, directory: Path) -> None:
        async with disk(1 << 20) as image:
            await image.pwrite(b"x" * 5000, 3000)
            async with nbd.serve({"disk": image}, path=directory / "real") as server:
                proxy = await asyncio.start_unix_server(
                    lambda r, w: self._relay(server.addresses[0], r, w), directory / "proxy"
                )
                async with proxy:
                    await session(f"nbd+unix:///disk?socket={directory / 'proxy'}")

    async def _relay(
        self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        theirs, to_them = await asyncio.open_unix_connection(address)

        async def forward() -> None:
            while data := await reader.read(65536):
                self.said.append((self.said[-1][0] + len(data), b""))
                to_them.write(data)
            to_them.close()

        going = asyncio.create_task(forward())
        while data := await theirs.read(65536):
            heard, piece = self.said[-1]
            self.said[-1] = (heard, piece + data)
            writer.write(data)
        await going
        writer.close()


async def session(uri: str) -> None:
    """What the client under test does: always the same."""
    async with nbd.connect(uri, timeout=5) as client:
        await client.pread(4096, 0)
        await client.pread(200_000, 0)
        await client.block_status(0, client.size)
        await client.pwrite(b"y" * 100, 5)
        await client.flush()


async def fuzz_client(directory: Path, seed: int, count: int) -> tuple[int, int]:
    """How many sessions ended well, and how many with an error of ours."""
    asyncio.get_running_loop().set_debug(False)  # it takes ten times as long, and finds no more
    recorder = Recorder()
    await recorder.record(directory)
    assert len(recorder.said) >= 9
    random = Random(seed)
    streams = iter([damaged(random, recorder.said) for _ in range(count)])
    path = directory / "fuzz"
    results: list[bool] = []

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError), closing(writer):
            heard = 0
            for needed, piece in next(streams):
                while heard < needed:
                    # A client that has been told too little waits for more; then we hang up.
                    async with asyncio.timeout(0.05):
                        data = await reader.read(65536)
                    if not data:
                        return
                    heard += len(data)
                writer.write(piece)
                await writer.drain()

    async def clients(sessions: int) -> None:
        for _ in range(sessions):
            try:
                async with asyncio.timeout(30):
                    await session(f"nbd+unix:///disk?socket={path}")
                results.append(True)
            except qedasync.QEDError:
                results.append(False)

    tracemalloc.start()
    try:
        async with await asyncio.start_unix_server(say, path), asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(clients(count // AT_ONCE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    return results.count(True), results.count(False)


def damaged(random: Random, said: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The same, with some of the pieces mutated."""
    pieces = list(said)
    for at in random.choices(range(len(pieces)), k=random.choice([0, 1, 1, 2])):
        pieces[at] = (pieces[at][0], mutated(random, pieces[at][1]))
    return pieces


async def test_fuzzed_servers_give_an_error_of_ours(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = CLIENT_STREAMS // 2
    good, bad = await fuzz_client(tmp_path, 4 if "uvloop" in request.node.name else 3, count)
    assert good + bad == count // AT_ONCE * AT_ONCE
    assert bad > count // 4
    assert good > 0


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(100, 116))
async def test_fuzz_for_long(tmp_path: Path, seed: int) -> None:
    """Both loops run it, so each of the seeds counts twice."""
    share = -(-WANTED // 32)
    await fuzz_server(seed, share * 9 // 10)
    await fuzz_client(tmp_path, seed, -(-share // 10))
