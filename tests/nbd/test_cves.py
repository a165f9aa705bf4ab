"""The published faults of other NBD servers, by number, each tried on ours.

The servers are QEMU's, nbdkit and nbd-server; what clients got wrong is in ``test_cves_client.py``.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import AsyncExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync import nbd
from qedasync.nbd.handshake import ExportFacts, Outcome, ServerHandshake
from qedasync.nbd.requests import Replies
from qedasync.nbd.wire import TransmissionFlag
from tests.nbd.talk import GREETING, Reply, flags, go, meta, option, replies, request
from tests.nbd.test_server import disk, entered, raw_client, served, until

ACK, UNKNOWN, TOO_BIG = 1, (1 << 31) + 6, (1 << 31) + 9
EXPORT_NAME, INFO, GO = 1, 6, 7
FACTS = ExportFacts(1 << 20, TransmissionFlag(5))


def shaken(*sent: bytes, names: tuple[str, ...] = ("disk",)) -> ServerHandshake:
    """A handshake that has been sent these."""
    handshake = ServerHandshake(dict.fromkeys(names, FACTS), tls_offered=True)
    assert handshake.take_output() == GREETING
    handshake.receive(flags() + b"".join(sent))
    return handshake


def answers(handshake: ServerHandshake) -> list[Reply]:
    return replies(handshake.take_output())


async def still_serves(server: nbd.Server) -> None:
    """One more client gets what it wants."""
    async with nbd.connect(server.uri("disk")) as client:
        assert await client.pread(512, 0) == bytes(512)


async def test_cve_2013_7441_and_2017_9524_client_leaves_at_any_point(tmp_path: Path) -> None:
    """nbd-server's main process ended when a client left during the handshake, or asked for an
    export that there is not. qemu-nbd crashed on a client that did not go through with it, since
    parts of its state were made ready only afterwards.
    """
    sent = flags() + option(8) + go(b"nothing") + go(b"disk")
    async with served(tmp_path) as (server, _):
        for cut in range(len(sent) + 1):
            _, writer = await asyncio.open_unix_connection(server.addresses[0])
            writer.write(sent[:cut])
            writer.transport.abort()
        await until(lambda: server.counters.accepted == len(sent) + 1 and not server.connections)
        await still_serves(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        flags() + bytes(100),
        flags() + request(0, 0, 512),
        flags() + option(7, magic=0x3E889045565A9),
        flags() + GREETING * 2,
        flags() + go(b"disk") * 3,
        flags() + option(8) + go(b"disk") + request(0, 0, 512, extended=True),
    ],
)
async def test_cve_2017_7539_unexpected_data_end_that_client_alone(
    tmp_path: Path, sent: bytes
) -> None:
    """A client that sent something unexpected while negotiating crashed qemu-nbd: an assertion
    about a coroutine that was not there yet.
    """
    async with served(tmp_path) as (server, _), nbd.connect(server.uri("disk")) as other:
        reader, writer = await asyncio.open_unix_connection(server.addresses[0])
        writer.write(sent)
        await reader.read()  # to its end: we are hung up on
        writer.close()
        assert await other.pread(512, 0) == bytes(512)
        await still_serves(server)


@pytest.mark.parametrize("length", [255, 256, 257, 4095, 4096])
def test_cve_2017_15118_long_name_is_a_name(length: int) -> None:
    """QEMU's server let a client name an export with up to 4096 bytes, and had room for 256 of
    them on its stack.
    """
    name = b"n" * length
    for ask in (option(EXPORT_NAME, name), go(name), option(8) + meta(10, name) + go(name)):
        assert shaken(ask, names=(name.decode(),)).outcome is Outcome.TRANSMISSION
    assert shaken(option(EXPORT_NAME, name)).outcome is Outcome.CLOSE
    assert answers(shaken(go(name)))[0][:2] == (GO, UNKNOWN)


def test_cve_2017_15118_name_longer_than_the_protocol_has_it_is_none() -> None:
    """The same from the other side: longer than 4096 bytes is no name, even if there were one."""
    name = b"n" * 4097
    assert shaken(option(EXPORT_NAME, name), names=(name.decode(),)).outcome is Outcome.CLOSE
    assert answers(shaken(go(name), names=(name.decode(),)))[0][:2] == (GO, UNKNOWN)


@pytest.mark.parametrize("number", [EXPORT_NAME, 3, 5, GO, 10, 99])
def test_cve_2017_15119_huge_option_is_not_read(number: int) -> None:
    """QEMU's server read through whatever an option said it had, up to 4 GiB, again and again."""
    handshake = shaken(struct.pack(">QII", 0x49484156454F5054, number, 0xFFFF_FFFF))
    assert handshake.outcome is Outcome.CLOSE


def test_cve_2017_15119_long_options_end_with_their_number() -> None:
    """What is short enough to be passed over is so only so often."""
    handshake = shaken(*[option(99, bytes(65537))] * 257)
    assert handshake.outcome is Outcome.CLOSE
    assert {kind for _, kind, _ in answers(handshake)} == {TOO_BIG}


class Watched:
    """A disk that notes what is asked of it."""

    def __init__(self, image: qedasync.Image) -> None:
        self._image = image
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._image, name)


async def test_cve_2019_14850_disk_is_left_alone_until_it_is_chosen(tmp_path: Path) -> None:
    """nbdkit opened its back end for whoever connected, before TLS and before an export was
    chosen; many connections that did no more could make it do much.
    """
    async with disk() as image:
        watched: Any = Watched(image)
        async with nbd.serve({"disk": watched}, path=tmp_path / "s") as server:
            sent = [
                option(3),
                option(8),
                meta(10, b"disk", b"base:allocation"),
                go(b"disk", number=6),
            ]
            for _ in range(20):
                async with raw_client(server, *sent, option(2)) as (reader, _):
                    assert await reader.read()
            shortcuts = {
                "try_pread", "try_pwrite", "pwrite_soon", "try_readinto", "try_locate",
                "renew_soon",
            }  # fmt: skip
            assert watched.asked <= {"size", "readonly", "closed"} | shortcuts
            await still_serves(server)
            assert watched.asked & {"try_pread", "pread"}


def test_cve_2019_14851_options_in_any_order_are_answered() -> None:
    """The mend of CVE-2019-14850 made nbdkit fail an assertion when a client sent options in an
    order that it had not thought of.
    """
    options = [
        option(3), option(8), option(11), meta(9, b"disk"), meta(10, b"disk", b"base:allocation"),
        go(b"disk", number=INFO), go(b"other", number=INFO), go(b"nothing"), option(99),
    ]  # fmt: skip
    for some in permutations(options, 3):
        handshake = shaken(*some, go(b"disk"), names=("disk", "other"))
        told = [kind for _, kind, _ in answers(handshake) if kind == ACK or kind >> 31]
        assert len(told) == 4
        assert handshake.outcome is Outcome.TRANSMISSION
        assert handshake.export_name == "disk"


def test_cve_2020_10761_refusal_of_a_long_name_is_short() -> None:
    """QEMU's server put the name it did not know into its refusal; with a name of almost 4096
    bytes that was longer than an assertion allowed.
    """
    for length in range(4000, 4097, 8):
        name = b"n" * length
        sent = go(name), go(name, number=INFO), option(8), meta(9, name), meta(10, name)
        told = answers(shaken(*sent))
        assert [kind for _, kind, _ in told] == [UNKNOWN, UNKNOWN, ACK, UNKNOWN, UNKNOWN]
        assert all(len(text) < 4096 for _, _, text in told)


def test_cve_2021_3716_what_was_agreed_before_tls_does_not_count_inside() -> None:
    """Somebody between client and nbdkit could ask for structured replies in plain text before
    the client's STARTTLS; inside TLS the client then got replies that it could not understand.
    """
    outside = shaken(option(8), meta(10, b"disk", b"base:allocation"), option(5))
    assert outside.outcome is Outcome.STARTTLS
    inside = outside.after_tls()
    inside.receive(go(b"disk"))
    assert inside.outcome is Outcome.TRANSMISSION
    assert inside.contexts == {}
    form = Replies(structured=inside.structured, extended=inside.extended)
    assert form.head(1, 0, 4) == struct.pack(">IIQ", 0x67446698, 0, 1)


def test_cve_2021_3716_plain_text_behind_starttls_is_not_taken_for_what_is_inside() -> None:
    """The same fault, with the bytes sent right after STARTTLS."""
    assert shaken(option(5), option(8)).outcome is Outcome.CLOSE


@pytest.mark.parametrize("number", [INFO, GO, 9, 10])
@pytest.mark.parametrize("length", [0xFFFF_FFFF, 0x8000_0000, 0x7FFF_FFFF, 5])
def test_cve_2022_26495_and_26496_name_length_that_is_not_so(number: int, length: int) -> None:
    """nbd-server believed the length of a name: 0xffffffff, and the byte after it, became a buffer
    of nothing; in INFO and GO a large one went past the end of its stack.
    """
    body = struct.pack(">I", length) + b"name" + bytes(4 if number in (9, 10) else 2)
    handshake = shaken(option(8), option(number, body), go(b"disk"))
    assert answers(handshake)[1][1] == (1 << 31) + 3, "invalid"
    assert handshake.outcome is Outcome.TRANSMISSION


async def test_cve_2024_7409_server_closes_while_clients_hold_on(tmp_path: Path) -> None:
    """QEMU crashed when its server was taken down while a client, perhaps in the middle of its
    handshake, kept the connection open.
    """
    write = request(1, 0, 4096, payload=b"half of it")
    states = [b"", flags()[:2], flags(), flags() + go(b"disk")[:20], flags() + go(b"disk"),
              flags() + go(b"disk") + write]  # fmt: skip
    async with served(tmp_path) as (server, image), AsyncExitStack() as stack:
        held = []
        for sent in states * 5:
            reader, writer = await asyncio.open_unix_connection(server.addresses[0])
            stack.callback(writer.close)
            writer.write(sent)
            held.append(reader)
        late = [
            asyncio.create_task(asyncio.open_unix_connection(server.addresses[0]))
            for _ in range(10)
        ]
        await server.close()
        for reader in held:
            async with asyncio.timeout(10):
                await hung_up(reader)
        for one in await asyncio.gather(*late, return_exceptions=True):
            if not isinstance(one, BaseException):
                stack.callback(one[1].close)
                async with asyncio.timeout(10):
                    await hung_up(one[0])
        assert server.connections == 0
        assert await image.pread(4096, 0) == bytes(4096)


async def hung_up(reader: asyncio.StreamReader) -> None:
    try:
        await reader.read()
    except ConnectionError:  # some of what was sent to it nobody has read
        pass


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 511, 4095])
async def test_cve_2025_47711_and_47712_status_of_all_that_32_bits_can_say(
    tmp_path: Path, extended: bool, offset: int
) -> None:
    """nbdkit failed assertions about block status: an answer of one byte too many where a client
    asked about as much as it could and the run was longer still, and in its blocksize filter a
    length near 4 GiB that was rounded up to more than 32 bits hold.
    """
    sent = [option(11 if extended else 8), meta(10, b"disk", b"base:allocation"), go(b"disk")]
    async with (
        disk(8 << 30) as image,
        nbd.serve({"disk": image}, path=tmp_path / "s") as server,
        raw_client(server, *sent) as (reader, writer),
    ):
        await entered(reader)
        for length in (0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_F001, 0x8000_0001):
            writer.write(request(7, offset, length, extended=extended))
            head = await reader.readexactly(32 if extended else 20)
            (size,) = struct.unpack(">Q" if extended else ">I", head[-8 if extended else -4 :])
            body = await reader.readexactly(size)
            form, skip = (">QQ", 8) if extended else (">II", 4)
            runs = list(struct.iter_unpack(form, body[skip:]))
            assert [status for _, status in runs] == [3], "one hole"
            assert min(length, 0xFFFF_F000) <= runs[0][0] <= length
        await still_serves(server)
