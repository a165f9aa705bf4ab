"""The client's side of the handshake: finds out what there is, and agrees on how to talk of it.

Nothing a server says is taken on trust: lengths are checked before memory is taken, and answers
that never end are ended here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qedasync.errors import StorageError
from qedasync.nbd.handshake import ExportFacts
from qedasync.nbd.link import READ_LIMIT, Agreement, Link, ServerFault, hang_up
from qedasync.nbd.uri import Address
from qedasync.nbd.wire import (
    CLIENT_FLAGS,
    GREETING,
    GREETING_MAGIC,
    MAX_NAME,
    OPTION_HEADER,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    ClientFlag,
    GreetingFlag,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
)

__all__ = ["Listed", "ask_for_exports", "open_link"]

_MAX_REPLY = 64 << 10  # bytes of an answer to an option
_MAX_REPLIES = 10_000  # to one option
_MAX_ANSWER = 16 << 20  # bytes of all answers to one option
_MAX_BLOCK = 32 << 20
_MAX_SIZE = (1 << 63) - 1  # bytes of an export; past it no offset reaches

Replies = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Listed:
    """One export that a server lists.

    Attributes:
        name: what to ask for.
        facts: what the server says of it.
        contexts: the metadata contexts it has.
        told_block_sizes: whether the server has said anything of block sizes.
    """

    name: str
    facts: ExportFacts
    contexts: tuple[str, ...]
    told_block_sizes: bool


async def open_link(
    address: Address, tls: ssl.SSLContext | None, contexts: Sequence[str], seconds: float
) -> Link:
    """Connect and shake hands.

    Raises:
        StorageError: there is no server, or it does not give us the export.

    Cancellation: nothing stays open.
    """
    async with _talking(address, tls, seconds) as talk:
        await talk.agree(contexts)
        await talk.go()
        return talk.into_link()


async def ask_for_exports(
    address: Address, tls: ssl.SSLContext | None, seconds: float
) -> list[Listed]:
    """What a server has, in its order.

    Raises:
        StorageError: there is no server, or it does not tell.

    Cancellation: nothing stays open.
    """
    async with _talking(address, tls, seconds) as talk:
        await talk.agree_on_form()
        listed = [await talk.look_at(name, text) for name, text in await talk.list_names()]
        talk.abort()
        return listed


@asynccontextmanager
async def _talking(
    address: Address, tls: ssl.SSLContext | None, seconds: float
) -> AsyncIterator[_Talk]:
    """A connection up to its options, within so many seconds; closed unless it became a link."""
    talk: _Talk | None = None
    try:
        async with asyncio.timeout(seconds):
            talk = _Talk(*await _connect(address), address)
            await talk.greet()
            if tls is not None:
                await talk.start_tls(tls)
            yield talk
    except TimeoutError as error:
        raise StorageError(errno.ETIMEDOUT, f"{address} does not answer") from error
    except asyncio.IncompleteReadError as error:
        raise StorageError(errno.ECONNRESET, f"{address} has hung up") from error
    except ServerFault as error:
        raise StorageError(errno.EPROTO, f"{address}: {error}") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno or errno.EIO, f"{address}: {error}") from error
    finally:
        if talk is not None and not talk.linked:
            await hang_up(talk.writer)


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not address.socket:
        try:
            return await asyncio.open_connection(address.host, address.port, limit=READ_LIMIT)
        except ValueError as error:  # no bytes of a host's name, which only shows here
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    one = socket.socket(socket.AF_UNIX)
    try:
        one.setblocking(False)
        # By hand: uvloop does not find abstract names by itself.
        await asyncio.get_running_loop().sock_connect(one, address.socket)
        return await asyncio.open_unix_connection(sock=one, limit=READ_LIMIT)
    except BaseException:
        one.close()
        raise


@dataclass(slots=True)
class _Talk:
    """A handshake going on.

    Attributes:
        structured, extended: what has been agreed on.
        contexts: number to name.
        facts: the export, once it is chosen.
        linked: the connection is a link's now.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    address: Address
    structured: bool = False
    extended: bool = False
    contexts: dict[int, str] = field(default_factory=dict)
    facts: ExportFacts | None = None
    no_zeroes: bool = False
    linked: bool = False

    async def greet(self) -> None:
        """The server's greeting, and our flags."""
        data = await self.reader.readexactly(16)
        magic, kind = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:], "big")
        if magic != GREETING_MAGIC:
            raise ServerFault("this is no NBD server")
        if kind != OPTION_MAGIC:
            raise ServerFault("the server speaks the oldstyle protocol, which we do not")
        flags = int.from_bytes(await self.reader.readexactly(GREETING.size - 16), "big")
        if not flags & GreetingFlag.FIXED_NEWSTYLE:
            raise ServerFault("the server does not speak fixed newstyle")
        self.no_zeroes = bool(flags & GreetingFlag.NO_ZEROES)
        answer = ClientFlag.FIXED_NEWSTYLE
        if self.no_zeroes:
            answer |= ClientFlag.NO_ZEROES
        self.writer.write(CLIENT_FLAGS.pack(answer))

    async def ask(self, option: Option, data: bytes = b"") -> tuple[int, Replies]:
        """Send an option; the last reply's kind, and all replies."""
        self._send(option, data)
        replies: Replies = []
        room = _MAX_ANSWER
        while True:
            head = await self.reader.readexactly(OPTION_REPLY.size)
            magic, to, kind, length = OPTION_REPLY.unpack(head)
            if magic != OPTION_REPLY_MAGIC or to != option or length > _MAX_REPLY:
                raise ServerFault("a wrong answer to an option")
            replies.append((kind, await self.reader.readexactly(length)))
            room -= length
            if len(replies) > _MAX_REPLIES or room < 0:
                raise ServerFault("too many answers to an option")
            if kind == OptionReply.ACK or kind & (1 << 31):
                return kind, replies

    def _send(self, option: Option, data: bytes) -> None:
        self.writer.write(OPTION_HEADER.pack(OPTION_MAGIC, option, len(data)) + data)

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Go on inside TLS."""
        kind, replies = await self.ask(Option.STARTTLS)
        if kind != OptionReply.ACK:
            raise _refused("does not do TLS", kind, replies[-1][1])
        name = self.address.hostname or self.address.host or "localhost"
        try:
            await self.writer.start_tls(context, server_hostname=name)
        except ssl.SSLError as error:
            raise StorageError(errno.EACCES, f"{self.address}: TLS failed: {error}") from error

    # ----------------------------------------------------------- one export's

    async def agree(self, contexts: Sequence[str]) -> None:
        """On the form of replies and the metadata contexts."""
        await self.agree_on_form()
        if not self.structured:
            return
        kind, replies = await self.ask(
            Option.SET_META_CONTEXT, _queries(self.address.export, contexts)
        )
        if kind == OptionReply.ACK:
            self._take_contexts(replies, contexts)

    async def agree_on_form(self) -> None:
        """The richest form of replies that the server knows."""
        kind, _ = await self.ask(Option.EXTENDED_HEADERS)
        self.extended = self.structured = kind == OptionReply.ACK
        if not self.extended:
            kind, _ = await self.ask(Option.STRUCTURED_REPLY)
            self.structured = kind == OptionReply.ACK

    def _take_contexts(self, replies: Replies, wanted: Sequence[str]) -> None:
        for number, name in _told_contexts(replies):
            if name not in wanted:
                raise ServerFault("a metadata context that was not asked for")
            self.contexts[number] = name

    async def go(self) -> None:
        """Choose the export."""
        kind, replies = await self.ask(Option.GO, _wishes(self.address.export))
        if kind == OptionReply.ERR_UNSUP:
            await self._export_name(self.address.export.encode(errors="surrogateescape"))
        elif kind != OptionReply.ACK:
            raise _refused(f"does not give {self.address.export!r}", kind, replies[-1][1])
        else:
            self.facts = _facts(replies)

    async def _export_name(self, name: bytes) -> None:
        """The way of older servers, which just hang up if they do not like the name."""
        self._send(Option.EXPORT_NAME, name)
        data = await self.reader.readexactly(10 if self.no_zeroes else 134)
        flags = TransmissionFlag(int.from_bytes(data[8:10], "big"))
        self.facts = ExportFacts(_size(data[:8]), flags, block_sizes=(1, 4096, _MAX_BLOCK))

    def into_link(self) -> Link:
        """The connection, for requests."""
        assert self.facts is not None
        self.linked = True
        agreed = Agreement(self.facts, self.structured, self.extended, self.contexts)
        return Link(self.reader, self.writer, agreed)

    # -------------------------------------------------------------- all exports

    async def list_names(self) -> list[tuple[str, str]]:
        """(name, description) of all exports."""
        kind, replies = await self.ask(Option.LIST)
        if kind != OptionReply.ACK:
            raise _refused("does not list its exports", kind, replies[-1][1])
        return [_listed(body) for reply, body in replies if reply == OptionReply.SERVER]

    async def look_at(self, name: str, description: str) -> Listed:
        """What there is to know of an export without choosing it."""
        kind, replies = await self.ask(Option.INFO, _wishes(name))
        if kind == OptionReply.ERR_UNSUP:
            unknown = ExportFacts(0, TransmissionFlag(0), description)
            return Listed(name, unknown, (), told_block_sizes=False)
        if kind != OptionReply.ACK:
            raise _refused(f"does not tell of {name!r}", kind, replies[-1][1])
        facts = _facts(replies, description)
        sizes = any(_info_kind(reply) == InfoType.BLOCK_SIZE for reply in replies)
        contexts: tuple[str, ...] = ()
        if self.structured:
            kind, replies = await self.ask(Option.LIST_META_CONTEXT, _queries(name, ()))
            if kind == OptionReply.ACK:
                contexts = tuple(context for _, context in _told_contexts(replies))
        return Listed(name, facts, contexts, told_block_sizes=sizes)

    def abort(self) -> None:
        """Say that we do not want anything."""
        self._send(Option.ABORT, b"")


# --------------------------------------------------------------------- the bytes


def _counted(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _wishes(name: str) -> bytes:
    """What to tell of an export, for INFO and GO."""
    wishes = (InfoType.BLOCK_SIZE, InfoType.DESCRIPTION)
    data = _counted(name.encode(errors="surrogateescape")) + len(wishes).to_bytes(2, "big")
    return data + b"".join(int(wish).to_bytes(2, "big") for wish in wishes)


def _queries(name: str, contexts: Sequence[str]) -> bytes:
    queries = b"".join(_counted(context.encode()) for context in contexts)
    return (
        _counted(name.encode(errors="surrogateescape")) + len(contexts).to_bytes(4, "big") + queries
    )


def _told_contexts(replies: Replies) -> list[tuple[int, str]]:
    told = []
    for kind, body in replies:
        if kind == OptionReply.META_CONTEXT:
            if len(body) < 5:
                raise ServerFault("a metadata context without a name")
            told.append((int.from_bytes(body[:4], "big"), body[4:].decode("utf-8", "replace")))
    return told


def _listed(body: bytes) -> tuple[str, str]:
    length = int.from_bytes(body[:4], "big")
    if len(body) < 4 or length > min(len(body) - 4, MAX_NAME):
        raise ServerFault("a name whose lengths do not fit")
    try:
        name = body[4 : 4 + length].decode()
    except UnicodeDecodeError as error:
        raise ServerFault("a name that is no UTF-8") from error
    return name, body[4 + length :][:MAX_NAME].decode("utf-8", "replace")


def _refused(what: str, kind: int, body: bytes) -> StorageError:
    text = body[:MAX_NAME].decode("utf-8", "replace")
    try:
        why = OptionReply(kind).name.removeprefix("ERR_").lower().replace("_", " ")
    except ValueError:
        why = f"error {kind:#x}"
    unknown = kind == OptionReply.ERR_UNKNOWN
    return StorageError(
        errno.ENOENT if unknown else errno.EACCES,
        f"The server {what}: {why}" + (f" ({text})" if text else ""),
    )


def _info_kind(reply: tuple[int, bytes]) -> int | None:
    """What an answer to INFO or GO tells of."""
    kind, body = reply
    return int.from_bytes(body[:2], "big") if kind == OptionReply.INFO and len(body) >= 2 else None


def _facts(replies: Replies, description: str = "") -> ExportFacts:
    size = flags = None
    sizes = (1, 4096, _MAX_BLOCK)
    for reply in replies:
        what, body = _info_kind(reply), reply[1]
        if what == InfoType.EXPORT and len(body) == 12:
            size, flags = _size(body[2:10]), int.from_bytes(body[10:], "big")
        elif what == InfoType.BLOCK_SIZE and len(body) == 14:
            sizes = _sizes(body)
        elif what == InfoType.DESCRIPTION:
            description = body[2 : 2 + MAX_NAME].decode("utf-8", "replace")
    if size is None or flags is None:
        raise ServerFault("the server does not say how large the export is")
    return ExportFacts(size, TransmissionFlag(flags), description, sizes)


def _size(data: bytes) -> int:
    size = int.from_bytes(data, "big")
    if size > _MAX_SIZE:
        raise ServerFault(f"an export of {size} bytes")
    return size


def _sizes(body: bytes) -> tuple[int, int, int]:
    least, preferred, most = (int.from_bytes(body[i : i + 4], "big") for i in (2, 6, 10))
    if least < 1 or least & (least - 1) or least > 64 << 10 or most < least:
        raise ServerFault(f"block sizes of {least} to {most} bytes")
    return least, preferred, min(most, _MAX_BLOCK) // least * least
