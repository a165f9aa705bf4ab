"""Long reads that leave as the page cache's own pages."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

import qedasync
from qedasync import nbd
from qedasync.storage.residency import Residency
from tests.nbd.talk import go, option, request
from tests.nbd.test_server import entered, raw_client

SIZE = 8 << 20
LONG = 256 << 10
CONTENT = Random(3).randbytes(SIZE)


class Sent(list[int]):
    """How many bytes each ``os.sendfile`` has sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sendfile = os.sendfile
        monkeypatch.setattr(os, "sendfile", self)

    def __call__(self, out: int, fd: int, offset: int, count: int) -> int:
        self.append(0)
        self[-1] = self._sendfile(out, fd, offset, count)
        return self[-1]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sent:
    with (tmp_path / "probe").open("w+b") as file:
        file.write(b"x")
        file.flush()
        if not Residency(file.fileno()).holds(0, 1):
            pytest.skip("this host does not say what its page cache holds")
    return Sent(monkeypatch)


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[tuple[nbd.Server, qedasync.Image]]:
    await qedasync.create(path / "disk.qed", SIZE)
    async with (
        qedasync.open(path / "disk.qed", "r+") as image,
        nbd.serve({"disk": image}, path=path / "s") as server,
    ):
        await image.pwrite(CONTENT, 0)
        assert await image.pread(1, 0) == CONTENT[:1]
        yield server, image


@pytest.mark.parametrize("structured", [False, True])
async def test_long_reads_of_a_slow_client_leave_whole_among_short_ones(
    tmp_path: Path, sent: Sent, structured: bool
) -> None:
    """The socket takes some pages, and the rest follows as a copy."""
    wanted = {n: (n << 16 | n, LONG if n % 3 else 512) for n in range(60)}
    reads = [request(0, *wanted[n], cookie=n) for n in wanted]
    async with served(tmp_path) as (server, _):
        hello = [*([option(8)] if structured else []), go(b"disk")]
        async with raw_client(server, *hello, *reads) as (reader, _):
            await entered(reader)
            await asyncio.sleep(0.02)  # the socket fills
            for _ in range(60):
                if structured:
                    head = struct.unpack(">IHHQIQ", await reader.readexactly(28))
                    cookie = head[3]
                    offset, length = wanted.pop(cookie)
                    assert head[1:] == (1, 1, cookie, 8 + length, offset)
                else:
                    _, error, cookie = struct.unpack(">IIQ", await reader.readexactly(16))
                    assert error == 0
                    offset, length = wanted.pop(cookie)
                assert await reader.readexactly(length) == CONTENT[offset : offset + length]
    assert sum(sent) > LONG
    assert min(sent) < LONG


async def test_long_read_of_what_is_not_at_hand_takes_no_page(tmp_path: Path, sent: Sent) -> None:
    async with served(tmp_path) as (server, image), nbd.connect(server.uri("disk")) as client:
        await image.discard(LONG, LONG)
        assert await client.pread(LONG, LONG) == bytes(LONG)
        assert not sent
        assert await client.pread(LONG, 0) == CONTENT[:LONG]
        assert sum(sent) > 0


async def test_long_read_past_what_the_image_has_is_refused(tmp_path: Path, sent: Sent) -> None:
    async with (
        served(tmp_path) as (server, _),
        raw_client(server, go(b"disk"), request(0, SIZE - LONG + 1, LONG)) as (reader, _),
    ):
        await entered(reader)
        assert struct.unpack(">IIQ", await reader.readexactly(16)) == (0x67446698, 22, 1)
    assert not sent
