"""What a client costs that does nothing."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import qedasync
from tests.nbd.talk import GREETING, flags, go, option
from tests.nbd.test_serve import serving
from tests.nbd.test_server import entered

CLIENTS = 200
MOST = 256 << 10
"""Bytes of memory that one idle client may take."""


def resident(process: int) -> int:
    """Bytes of memory that a process has, of which none can be given back without it."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel does not tell")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_idle_client_takes_little_memory(tmp_path: Path) -> None:
    image, path = tmp_path / "disk.qed", tmp_path / "s"
    await qedasync.create(image, "8M")
    async with serving("-t", "-k", path, image) as served, AsyncExitStack() as clients:

        async def come() -> None:
            reader, writer = await asyncio.open_unix_connection(path)
            clients.push_async_callback(writer.wait_closed)
            clients.callback(writer.close)
            assert await reader.readexactly(len(GREETING)) == GREETING
            writer.write(flags() + option(8) + go(b""))
            await entered(reader)

        await come()
        before = resident(served.process.pid)
        for _ in range(CLIENTS):
            await come()
        assert resident(served.process.pid) - before < CLIENTS * MOST
