"""``qedasync serve`` under a mixed load: clients killed at random, and then the server itself.

Each block says which write it comes from, so what is found afterwards is held against what may be
there: the last write that a flush has covered, or a later one, and never an older one. SIGKILL
leaves what the kernel has: what is shown here is that nothing flushed was in the process alone.
Power losses are the affair of ``tests/crash``.
"""

from __future__ import annotations

import asyncio
import signal
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

import qedasync
from qedasync import nbd
from qedasync.nbd.wire import Command
from tests.helpers import qemu
from tests.nbd.talk import request
from tests.nbd.test_serve import serving
from tests.nbd.test_server import served

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals and sockets of Linux"),
    qemu.needs_qemu,
]

BLOCK = 4096
RUN = 4  # blocks side by side that are one client's; its neighbours in a cluster are others'
RUNS = 24  # of each client


def content(number: int, version: int) -> bytes:
    """What a block holds after a write; version 0 is zeroes."""
    return struct.pack(">QQ", number, version) * (BLOCK // 16) if version else bytes(BLOCK)


@dataclass(slots=True)
class Block:
    """What one block may hold, as versions.

    Attributes:
        number: its place on the disk.
        now: what a read may give.
        kept: what may be there after the server was killed.
        ghosts: writes whose client was killed; they may still be carried out, at any time.
    """

    number: int
    now: set[int] = field(default_factory=lambda: {0})
    kept: set[int] = field(default_factory=lambda: {0})
    ghosts: set[int] = field(default_factory=set)

    def begin(self, version: int) -> None:
        self.now.add(version)
        self.kept.add(version)

    def settle(self, data: bytes, may: set[int]) -> None:
        """Find out what it holds; from now on only that."""
        found = self.look(data, may)
        self.now, self.kept, self.ghosts = {found}, {found}, set()

    def look(self, data: bytes, may: set[int]) -> int:
        """The version; fails if it is none of those."""
        number, version = struct.unpack_from(">QQ", data)
        assert data == content(self.number, version), f"block {self.number} has parts of {number}"
        assert version in may, f"block {self.number} holds {version}, not one of {sorted(may)}"
        return int(version)


@dataclass(slots=True)
class Siege:
    """A server and those at it.

    Attributes:
        rounds: until the end; counted down by all clients together.
        enough: set when they are done.
        stopped: the clients are to leave.
        dead: the server was killed, and errors are no wonder.
        kills: clients killed.
    """

    uri: str
    rounds: int
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: bool = False
    dead: bool = False
    kills: int = 0

    def count(self) -> None:
        self.rounds -= 1
        if self.rounds <= 0:
            self.enough.set()


class Player:
    """A client that comes back whenever it was killed, and what it knows of its blocks."""

    def __init__(self, place: int, players: int, seed: int) -> None:
        self.random = Random(f"{seed}-{place}")
        self.version = 0
        self.runs = [
            [Block((n * players + place) * RUN + i) for i in range(RUN)] for n in range(RUNS)
        ]

    @property
    def blocks(self) -> list[Block]:
        return [block for run in self.runs for block in run]

    async def play(self, siege: Siege) -> None:
        """One life after the other."""
        try:
            while not siege.stopped:
                async with nbd.connect(siege.uri) as client:
                    await self._live(siege, client)
        except qedasync.StorageError:
            if not siege.dead:
                raise

    async def _live(self, siege: Siege, client: nbd.Client) -> None:
        for _ in range(self.random.randrange(1, 8)):
            await self._round(client)
            siege.count()
            if siege.stopped:
                return
        siege.kills += 1
        last = asyncio.create_task(self._change_some(client))
        for _ in range(self.random.randrange(2, 6)):  # so it gets more or less far
            await asyncio.sleep(0)
        self._kill(client)
        await asyncio.wait([last])
        assert isinstance(last.exception(), qedasync.StorageError | None)

    async def _round(self, client: nbd.Client) -> None:
        await self._change_some(client)
        run = self.random.choice(self.runs)
        data = await client.pread(RUN * BLOCK, run[0].number * BLOCK)
        for i, block in enumerate(run):
            block.look(bytes(data[i * BLOCK : (i + 1) * BLOCK]), block.now)
        if self.random.random() < 0.5:
            await client.flush()
            for block in self.blocks:
                block.kept = set(block.now)

    async def _change_some(self, client: nbd.Client) -> None:
        """A few changes side by side, each to a run of its own."""
        runs = self.random.sample(self.runs, 3)
        done = await asyncio.gather(
            *[self._change(client, run) for run in runs], return_exceptions=True
        )
        for error in done:
            if error is not None:
                raise error

    async def _change(self, client: nbd.Client, run: list[Block]) -> None:
        self.version += 1
        first = self.random.randrange(RUN)
        blocks = run[first : self.random.randrange(first, RUN) + 1]
        offset, length = blocks[0].number * BLOCK, len(blocks) * BLOCK
        kind = self.random.choice(["write", "write", "write", "zero", "trim"])
        version = self.version if kind == "write" else 0
        for block in blocks:
            block.begin(version)
        try:
            if kind == "write":
                await client.pwrite(b"".join(content(b.number, version) for b in blocks), offset)
            elif kind == "zero":
                await client.write_zeroes(length, offset)
            else:
                await client.discard(length, offset)
        except BaseException:
            for block in blocks:
                block.ghosts.add(version)
            raise
        if kind != "trim":  # of which nothing is promised
            for block in blocks:
                block.now = {version} | block.ghosts

    def _kill(self, client: nbd.Client) -> None:
        """End as a killed process does: the kernel closes its socket, whatever was on its way."""
        link = client._link.link
        assert link is not None
        if not link._writer.is_closing() and self.random.random() < 0.5:
            # Half a write, which must never be seen: no block may hold this.
            where = self.random.choice(self.blocks).number * BLOCK
            head = request(
                Command.WRITE, where, BLOCK, cookie=1 << 40, flags=1 << 5, extended=link._extended
            )
            link._writer.write(head + b"half" * (BLOCK // 8))
        link._writer.transport.abort()


async def besiege(
    image: Path, players: list[Player], rounds: int, end: signal.Signals, socket: Path
) -> Siege:
    """Serve the image to all of them, and end the server in the midst of it."""
    async with serving("-t", "-k", socket, image) as served:
        siege = Siege(served.uris[0], rounds)
        async with asyncio.TaskGroup() as group:
            for player in players:
                group.create_task(player.play(siege))
            await siege.enough.wait()
            if end == signal.SIGKILL:
                siege.dead = True
                assert await served.end(end) == -end
            siege.stopped = not siege.dead
        if end != signal.SIGKILL:
            assert await served.end(end) == 0
    socket.unlink(missing_ok=True)
    return siege


async def look_at(image: Path, players: list[Player], end: signal.Signals) -> None:
    """Open it, which repairs it if need be, and hold each block against what it may hold."""
    if end != signal.SIGKILL:
        clean_for_qemu(image)  # without us before
    async with qedasync.open(image, "r+") as disk:
        data = bytes(await disk.pread(disk.size, 0))
        result = await disk.check()
        assert (result.corruptions, result.leaks) == (0, 0)
    for player in players:
        for block in player.blocks:
            at = block.number * BLOCK
            may = block.kept if end == signal.SIGKILL else block.now
            block.settle(data[at : at + BLOCK], may)
    clean_for_qemu(image)


def clean_for_qemu(image: Path) -> None:
    counts = qemu.check(image)
    cluster_size = struct.unpack_from("<I", image.read_bytes()[:8], 4)[0]
    leaks = counts["leaks"] - qemu.phantom_leaks(image, cluster_size)
    assert (counts["corruptions"], counts["check-errors"], leaks) == (0, 0, 0)


async def make(image: Path, players: int, seed: int) -> list[Player]:
    size = players * RUNS * RUN * BLOCK
    await qedasync.create(image, size, cluster_size=(65536, 4096)[seed % 2])
    return [Player(place, players, seed) for place in range(players)]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_clients_are_killed_and_then_the_server_and_nothing_flushed_is_lost(
    tmp_path: Path, end: signal.Signals, request: pytest.FixtureRequest
) -> None:
    image = tmp_path / "disk.qed"
    players = await make(image, 12, seed=int("uvloop" in request.node.name))
    siege = await besiege(image, players, 200, end, tmp_path / "s")
    assert siege.kills
    await look_at(image, players, end)


@pytest.mark.parametrize("reconnect", [0.0, 10.0])
@pytest.mark.parametrize("turns", range(5))
async def test_request_while_the_connection_is_breaking_is_an_error_of_ours(
    tmp_path: Path, turns: int, reconnect: float
) -> None:
    """However many turns of the loop ago it broke, and whether we have been told yet."""
    async with (
        served(tmp_path) as (server, _),
        nbd.connect(server.uri("disk"), reconnect=reconnect) as client,
    ):
        link = client._link.link
        assert link is not None
        link._writer.transport.abort()
        for _ in range(turns):
            await asyncio.sleep(0)
        if reconnect:
            assert await client.pread(1, 0) == b"\0"
        else:
            with pytest.raises(qedasync.StorageError):
                await client.pread(1, 0)


async def test_client_lives_on_when_the_server_is_killed_and_started_again(
    tmp_path: Path,
) -> None:
    """What it was told to write meanwhile is written; of what nobody flushed it does not lie."""
    image, socket = tmp_path / "disk.qed", tmp_path / "s"
    await qedasync.create(image, "16M")
    async with serving("-t", "-k", socket, image) as first:
        client = await nbd.connect(first.uris[0], reconnect=30)
        await client.pwrite(b"kept" * 1024, 0)
        await client.flush()
        await client.pwrite(b"perhaps", 1 << 19)
        await first.end(signal.SIGKILL)
    socket.unlink(missing_ok=True)
    writing = [asyncio.create_task(client.pwrite(bytes([n]) * 4096, n << 20)) for n in range(1, 16)]
    async with serving("-t", "-k", socket, image) as second:
        await asyncio.gather(*writing)
        with pytest.raises(qedasync.StorageError, match="may have lost"):
            await client.flush()
        await client.flush()
        assert await client.pread(4096, 0) == b"kept" * 1024
        await client.close()
        assert await second.end() == 0
    async with qedasync.open(image) as disk:
        for n in range(1, 16):
            assert await disk.pread(4096, n << 20) == bytes([n]) * 4096


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(5))
async def test_hundred_clients_and_a_server_killed_again_and_again(
    tmp_path: Path, seed: int
) -> None:
    """Fifty servers on each loop, ten after one another on the same image."""
    asyncio.get_running_loop().set_debug(False)
    image = tmp_path / "disk.qed"
    players = await make(image, 100, seed)
    for _ in range(10):
        rounds = players[0].random.randrange(100, 1000)
        siege = await besiege(image, players, rounds, signal.SIGKILL, tmp_path / "s")
        assert siege.kills
        await look_at(image, players, signal.SIGKILL)
