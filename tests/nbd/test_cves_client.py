"""The published faults of other NBD clients, by number, each tried on ours.

The clients are QEMU's and libnbd's; what servers got wrong is in ``test_cves.py``.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync import nbd
from tests.nbd.certificates import make_certificates
from tests.nbd.talk import GREETING
from tests.nbd.test_server import disk

ACK, INFO, CONTEXT, UNSUP = 1, 3, 4, (1 << 31) + 1
SIZE = 1 << 20
STRUCTURED = {8: [(ACK, b"")]}


def said(number: int, kind: int, data: bytes = b"", length: int | None = None) -> bytes:
    """A server's answer to an option."""
    length = len(data) if length is None else length
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, length) + data


def export(size: int = SIZE, most: int = 32 << 20) -> list[tuple[int, bytes]]:
    """What answers GO."""
    sizes = struct.pack(">HIII", 3, 1, 4096, most)
    return [(INFO, sizes), (INFO, struct.pack(">HQH", 0, size, 5)), (ACK, b"")]


class Liar:
    """A server that says what it is told to.

    Args:
        options: the answers to each option; to all others that it is unknown.
        reply: what follows each request, with COOKIE in place of the request's.
        greeting: its first words.
        once: hang up after the first reply.
    """

    COOKIE = b"\xc0" * 8

    def __init__(
        self,
        options: Mapping[int, list[tuple[int, bytes]] | bytes],
        reply: bytes = b"",
        greeting: bytes = GREETING,
        *,
        once: bool = False,
    ) -> None:
        self.options, self.reply, self.greeting, self.once = options, reply, greeting, once
        self.heard: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, to its end."""
        try:
            await self.shake(reader, writer)
            size = 32 if 11 in self.options else 28  # of a request's header
            header = b""
            while not (self.once and header):
                header = await reader.readexactly(size)
                writer.write(self.reply.replace(self.COOKIE, header[8:16]))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def shake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The handshake; requests follow."""
        writer.write(self.greeting)
        await reader.readexactly(4)
        while not await self._answer(reader, writer):
            pass

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """To one option; whether requests follow."""
        _, number, length = struct.unpack(">QII", await reader.readexactly(16))
        await reader.readexactly(length)
        self.heard.append(number)
        answer = self.options.get(number, [(UNSUP, b"")])
        if isinstance(answer, bytes):
            writer.write(answer)
        else:
            writer.write(b"".join(said(number, *one) for one in answer))
        return number == 1 or (number == 7 and number in self.options)


@asynccontextmanager
async def lying(path: Path, liar: Liar) -> AsyncIterator[str]:
    """It listens; the URI."""
    async with await asyncio.start_unix_server(liar.serve, path / "liar"):
        yield f"nbd+unix:///d?socket={path / 'liar'}"


async def refused(uri: str, match: str | None = None, **wish: Any) -> None:
    with pytest.raises(qedasync.StorageError, match=match):
        await nbd.connect(uri, timeout=10, **wish)


@pytest.mark.parametrize("number", [11, 8, 7])
@pytest.mark.parametrize("kind", [UNSUP, INFO, ACK])
async def test_cve_2017_2630_answer_with_a_huge_length_is_not_taken(
    tmp_path: Path, number: int, kind: int
) -> None:
    """QEMU's client threw away the text of a server's answer by reading as much as the server
    said into a small buffer on its stack.
    """
    liar = Liar({number: said(number, kind, bytes(1000), 0xFFFF_FFFF)})
    async with lying(tmp_path, liar) as uri:
        await refused(uri, "wrong answer")


@pytest.mark.parametrize(
    "liar",
    [
        Liar({7: export()}),
        Liar({5: [((1 << 31) + 2, b"no")], 7: export()}),
        Liar({7: export()}, greeting=GREETING[:16] + b"\0\0"),
        Liar({7: export()}, greeting=b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53" + bytes(136)),
    ],
    ids=["unsupported", "by policy", "not fixed newstyle", "oldstyle"],
)
async def test_cve_2019_14842_no_tls_is_no_connection(tmp_path: Path, liar: Liar) -> None:
    """libnbd could be brought to go on in plain text although TLS was required of it."""
    async with lying(tmp_path, liar) as uri:
        context = nbd.client_context(verify=False)
        await refused(uri.replace("nbd+", "nbds+"), tls=context)
    assert set(liar.heard) <= {5}, "nothing was said of what is wanted"


def chunk(kind: int, body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return struct.pack(">IHH", 0x668E33EF, 1, kind) + Liar.COOKIE + struct.pack(">I", length) + body


@pytest.mark.parametrize(
    "reply",
    [
        chunk(1, struct.pack(">Q", (1 << 64) - 1) + bytes(100)),
        chunk(1, struct.pack(">Q", 4095) + bytes(100)),
        chunk(1, struct.pack(">Q", 4096 + 450) + bytes(100)),
        chunk(1, struct.pack(">Q", 4096), 0xFFFF_FFFF),
        chunk(2, struct.pack(">QI", (1 << 64) - 1, 100)),
        chunk(2, struct.pack(">QI", 4096, 513)),
        chunk(2, struct.pack(">QI", 4097, 0xFFFF_FFFF)),
    ],
)
async def test_libnbd_2019_part_of_a_read_from_outside_of_it_is_not_taken(
    tmp_path: Path, reply: bytes
) -> None:
    """The entry without a number after CVE-2019-14842 in libnbd's list: a chunk of a structured
    reply with a negative offset was written before the caller's buffer.
    """
    async with (
        lying(tmp_path, Liar(STRUCTURED | {7: export()}, reply)) as uri,
        nbd.connect(uri) as client,
    ):
        with pytest.raises(qedasync.StorageError, match="outside"):
            await client.pread(512, 4096)


async def test_cve_2021_20286_server_leaves_at_any_point_of_the_handshake(tmp_path: Path) -> None:
    """libnbd failed an assertion when the server went away in the midst of an option."""
    whole = GREETING + said(11, UNSUP) + said(8, UNSUP)
    whole += b"".join(said(7, *one) for one in export())
    words = b""

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        writer.close()

    async with await asyncio.start_unix_server(leave, tmp_path / "s"):
        for cut in range(len(whole)):
            words = whole[:cut]
            await refused(f"nbd+unix:///d?socket={tmp_path / 's'}")


async def test_cve_2022_0485_read_that_failed_in_part_has_failed(tmp_path: Path) -> None:
    """nbdcopy did not look at the errors of its reads, and wrote what its buffers held."""
    error = chunk(0x8001, struct.pack(">IH", 5, 0))
    async with (
        lying(tmp_path, Liar(STRUCTURED | {7: export(most=4096)}, error)) as uri,
        nbd.connect(uri) as client,
    ):
        with pytest.raises(qedasync.StorageError):
            await client.pread(65536, 0)
        with pytest.raises(qedasync.StorageError):
            await qedasync.convert(client, tmp_path / "copy.qed")
    assert not (tmp_path / "copy.qed").exists()


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 512, (1 << 64) - 2, (1 << 64) - 1])
@pytest.mark.parametrize("old", [False, True])
async def test_cve_2023_5215_size_that_no_offset_reaches_is_refused(
    tmp_path: Path, size: int, old: bool
) -> None:
    """libnbd told of a size from 2**63 on as a negative one."""
    liar = Liar({1: struct.pack(">QH", size, 5)} if old else {7: export(size)})
    async with lying(tmp_path, liar) as uri:
        await refused(uri, "bytes")


async def test_cve_2023_5871_flags_of_64_bits_are_no_harm(tmp_path: Path) -> None:
    """libnbd failed an assertion on a block status whose flags did not fit into 32 bits."""
    context = [(CONTEXT, struct.pack(">I", 1) + b"base:allocation"), (ACK, b"")]
    runs = [(4096, 1 << 63), (4096, (1 << 32) | 3), (SIZE - 8192, (1 << 64) - 1)]
    body = struct.pack(">II", 1, len(runs)) + b"".join(struct.pack(">QQ", *run) for run in runs)
    reply = struct.pack(">IHH", 0x6E8A278C, 1, 6) + Liar.COOKIE
    reply += struct.pack(">QQ", 0, len(body)) + body
    liar = Liar({11: [(ACK, b"")], 10: context, 7: export()}, reply)
    async with lying(tmp_path, liar) as uri, nbd.connect(uri) as client:
        told = await client.block_status(0, SIZE)
        assert [(run.start, run.zero) for run in told] == [(0, False), (4096, True)]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("cves"))


async def test_cve_2024_7383_certificate_is_held_against_authority_and_name(
    pki: Path, tmp_path: Path
) -> None:
    """libnbd did not check the server's certificate well enough, so somebody in between could
    have shown another.
    """
    other = make_certificates(tmp_path / "other")
    tls = nbd.server_context(pki)
    async with disk() as image, nbd.serve({"d": image}, port=0, tls=tls) as server:
        uri = f"nbds://localhost:{server.port}/d"
        await refused(uri, "TLS failed")  # by the system's authorities
        await refused(f"{uri}?tls-certificates={other}", "TLS failed")
        await refused(f"{uri}?tls-certificates={pki}&tls-hostname=example.org", "TLS failed")
        async with nbd.connect(f"{uri}?tls-certificates={pki}") as client:
            assert await client.pread(1, 0) == b"\0"
    async with disk() as image, nbd.serve({"d": image}, path=tmp_path / "s", tls=tls):
        uri = f"nbds+unix:///d?socket={tmp_path / 's'}"
        await refused(f"{uri}&tls-certificates={other}", "TLS failed")
        await refused(f"{uri}&tls-certificates={pki}&tls-hostname=example.org", "TLS failed")
