"""One connection of a client: the handshake, requests out, replies in.

What a server sends is believed no more than what a client sends: names, lengths and cookies are
checked before memory is taken, and a server that breaks the protocol is hung up on.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from qedasync.errors import StorageError
from qedasync.nbd.handshake import ExportFacts
from qedasync.nbd.uri import Address
from qedasync.nbd.wire import (
    BLOCK_DESCRIPTOR,
    BLOCK_DESCRIPTOR_EXT,
    CHUNK_HEADER,
    CLIENT_FLAGS,
    EXTENDED_CHUNK_HEADER,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST,
    EXTENDED_REQUEST_MAGIC,
    GREETING,
    GREETING_MAGIC,
    MAX_NAME,
    OPTION_HEADER,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkFlag,
    ChunkType,
    ClientFlag,
    Command,
    CommandFlag,
    GreetingFlag,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
    to_errno,
)

__all__ = ["Link", "LinkLost", "open_link"]

_MAX_REPLY = 64 << 10  # bytes of an answer to an option
_MAX_REPLIES = 10_000  # to one option
_MAX_BODY = 8 << 20  # bytes of a chunk that is not data
_MAX_BLOCK = 32 << 20
_MAX_SIZE = (1 << 63) - 1  # bytes of an export; past it no offset reaches
_READ_LIMIT = 1 << 20

Buffer = bytes | bytearray | memoryview


class LinkLost(Exception):
    """The connection has ended; what was in flight may or may not have been carried out."""


@dataclass(slots=True)
class _Pending:
    """A request that waits for its reply.

    Attributes:
        start, length: its range.
        buffer: where a read goes.
        filled: bytes of it that have come.
        error: the first that the server told of.
        status: runs by the context's name.
    """

    command: Command
    start: int
    length: int
    buffer: memoryview | None
    future: asyncio.Future[None]
    filled: int = 0
    error: StorageError | None = None
    status: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


class Link:
    """A connection after its handshake; made by :func:`open_link`.

    Attributes:
        facts: what the server says of the export.
        contexts: the metadata contexts agreed on, number to name.
        lost: whether it has ended.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        talk: _Talk,
    ) -> None:
        assert talk.facts is not None
        self.facts = talk.facts
        self.contexts = talk.contexts
        self.lost = False
        self._structured, self._extended = talk.structured, talk.extended
        self._header = EXTENDED_REQUEST if talk.extended else REQUEST
        self._magic = EXTENDED_REQUEST_MAGIC if talk.extended else REQUEST_MAGIC
        self._reader, self._writer = reader, writer
        self._cookie = 0
        self._pending: dict[int, _Pending] = {}
        self._reading = asyncio.create_task(self._read_replies(), name="qedasync nbd: replies")

    async def request(
        self,
        command: Command,
        flags: int,
        offset: int,
        length: int,
        payload: Buffer,
        buffer: memoryview | None,
    ) -> dict[str, list[tuple[int, int]]]:
        """Send a request and wait for its reply; the runs, for a block status.

        Raises:
            StorageError: the server could not do it.
            LinkLost: the connection ended before the reply.

        Cancellation: at once; the reply is passed over when it comes.
        """
        if self.lost or self._writer.is_closing():
            self.lost = True  # the replies' task, which tells the others, may not have run yet
            raise LinkLost("it was lost before")
        self._cookie += 1
        cookie = self._cookie
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending = _Pending(command, offset, length, buffer, future)
        self._pending[cookie] = pending
        if self._extended and command == Command.WRITE:
            flags |= int(CommandFlag.PAYLOAD_LEN)
        self._writer.write(self._header.pack(self._magic, flags, command, cookie, offset, length))
        if len(payload):
            self._writer.write(payload)
            with suppress(ConnectionError):  # the replies' task finds out why
                await self._writer.drain()
        await future
        if pending.error is not None:
            raise pending.error
        return pending.status

    async def close(self) -> None:
        """Say good-bye and hang up."""
        if not self.lost:
            with suppress(ConnectionError, RuntimeError):
                self._writer.write(self._header.pack(self._magic, 0, Command.DISC, 0, 0, 0))
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await _hang_up(self._writer)

    # ---------------------------------------------------------------- replies

    async def _read_replies(self) -> None:
        reason = "the client has closed it"
        try:
            while True:
                await self._read_reply()
        except asyncio.IncompleteReadError:
            reason = "the server has hung up"
        except _Broken as error:
            reason = f"the server breaks the protocol: {error}"
        except OSError as error:
            reason = str(error)
        finally:
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        self.lost = True
        waiting, self._pending = self._pending, {}
        for pending in waiting.values():
            if not pending.future.done():
                pending.future.set_exception(LinkLost(reason))
                pending.future.exception()  # whoever waited may have been cancelled just now
        self._writer.close()

    async def _read_reply(self) -> None:
        magic = int.from_bytes(await self._reader.readexactly(4), "big")
        if magic == SIMPLE_REPLY_MAGIC and not self._extended:
            await self._read_simple()
        elif magic == STRUCTURED_REPLY_MAGIC and self._structured and not self._extended:
            rest = await self._reader.readexactly(CHUNK_HEADER.size - 4)
            _, flags, kind, cookie, length = CHUNK_HEADER.unpack(magic.to_bytes(4, "big") + rest)
            await self._read_chunk(flags, kind, cookie, length)
        elif magic == EXTENDED_REPLY_MAGIC and self._extended:
            rest = await self._reader.readexactly(EXTENDED_CHUNK_HEADER.size - 4)
            whole = magic.to_bytes(4, "big") + rest
            _, flags, kind, cookie, _, length = EXTENDED_CHUNK_HEADER.unpack(whole)
            await self._read_chunk(flags, kind, cookie, length)
        else:
            raise _Broken(f"{magic:#x} where a reply begins")

    async def _read_simple(self) -> None:
        rest = await self._reader.readexactly(SIMPLE_REPLY.size - 4)
        error, cookie = int.from_bytes(rest[:4], "big"), int.from_bytes(rest[4:], "big")
        pending = self._find(cookie)
        if self._structured and pending.command in (Command.READ, Command.BLOCK_STATUS):
            raise _Broken("a simple reply where it has to be structured")
        if error:
            pending.error = _failure(error, "", pending)
        elif pending.command == Command.READ:
            await self._fill(pending, 0, pending.length)
        self._finish(cookie, pending)

    async def _read_chunk(self, flags: int, kind: int, cookie: int, length: int) -> None:
        pending = self._find(cookie)
        if kind == ChunkType.OFFSET_DATA:
            await self._read_data(pending, length)
        else:
            if length > _MAX_BODY:
                raise _Broken(f"a chunk of {length} bytes")
            self._take_chunk(pending, kind, await self._reader.readexactly(length))
        if flags & ChunkFlag.DONE:
            self._finish(cookie, pending)

    async def _read_data(self, pending: _Pending, length: int) -> None:
        if pending.command != Command.READ or length < 9:
            raise _Broken("data that nobody asked for")
        offset = int.from_bytes(await self._reader.readexactly(8), "big")
        await self._fill(pending, self._inside(pending, offset, length - 8), length - 8)

    def _take_chunk(self, pending: _Pending, kind: int, body: bytes) -> None:
        if kind == ChunkType.NONE:
            if body:
                raise _Broken("an empty chunk with a body")
        elif kind == ChunkType.OFFSET_HOLE:
            self._take_hole(pending, body)
        elif kind in (ChunkType.BLOCK_STATUS, ChunkType.BLOCK_STATUS_EXT):
            self._take_status(pending, kind, body)
        elif kind & (1 << 15):
            size = int.from_bytes(body[4:6], "big")
            if len(body) < 6 or size > len(body) - 6:
                raise _Broken("an error whose lengths do not fit")
            text = body[6 : 6 + size].decode("utf-8", "replace")
            number = int.from_bytes(body[:4], "big")
            pending.error = pending.error or _failure(number, text, pending)
        else:
            raise _Broken(f"a chunk of the unknown kind {kind}")

    def _take_hole(self, pending: _Pending, body: bytes) -> None:
        if len(body) != 12 or pending.command != Command.READ:
            raise _Broken("a hole that nobody asked for")
        offset, length = int.from_bytes(body[:8], "big"), int.from_bytes(body[8:], "big")
        start = self._inside(pending, offset, length)
        assert pending.buffer is not None
        pending.buffer[start : start + length] = bytes(length)
        pending.filled += length

    def _take_status(self, pending: _Pending, kind: int, body: bytes) -> None:
        extended = kind == ChunkType.BLOCK_STATUS_EXT
        if pending.command != Command.BLOCK_STATUS or extended != self._extended:
            raise _Broken("a block status that nobody asked for")
        head, form = (8, BLOCK_DESCRIPTOR_EXT) if extended else (4, BLOCK_DESCRIPTOR)
        name = self.contexts.get(int.from_bytes(body[:4], "big"))
        if len(body) <= head or (len(body) - head) % form.size or name is None:
            raise _Broken("a block status whose parts do not fit")
        pending.status[name] = list(form.iter_unpack(body[head:]))

    def _inside(self, pending: _Pending, offset: int, length: int) -> int:
        """Where in the buffer that is."""
        start = offset - pending.start
        if start < 0 or not length or start + length > pending.length:
            raise _Broken("a part of a read from outside of it")
        if pending.filled + length > pending.length:
            raise _Broken("more data than were asked for")
        return start

    async def _fill(self, pending: _Pending, start: int, length: int) -> None:
        buffer = pending.buffer
        assert buffer is not None
        end = start + length
        pending.filled += length
        while start < end:
            data = await self._reader.read(min(end - start, _READ_LIMIT))
            if not data:
                raise asyncio.IncompleteReadError(b"", end - start)
            buffer[start : start + len(data)] = data
            start += len(data)

    def _find(self, cookie: int) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise _Broken(f"a reply to the request {cookie}, which there is not")
        return pending

    def _finish(self, cookie: int, pending: _Pending) -> None:
        if (
            pending.command == Command.READ
            and pending.error is None
            and pending.filled != pending.length
        ):
            raise _Broken("a read that is not whole")
        del self._pending[cookie]
        if not pending.future.done():
            pending.future.set_result(None)


class _Broken(Exception):
    """The server breaks the protocol."""


def _failure(number: int, text: str, pending: _Pending) -> StorageError:
    return StorageError(to_errno(number), text or None, offset=pending.start, length=pending.length)


# ------------------------------------------------------------------- handshake


@dataclass(slots=True)
class _Talk:
    """A handshake going on.

    Attributes:
        structured, extended: what has been agreed on.
        contexts: number to name.
        facts: the export, once it is chosen.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    address: Address
    structured: bool = False
    extended: bool = False
    contexts: dict[int, str] = field(default_factory=dict)
    facts: ExportFacts | None = None
    no_zeroes: bool = False

    async def greet(self) -> None:
        """The server's greeting, and our flags."""
        data = await self.reader.readexactly(16)
        magic, kind = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:], "big")
        if magic != GREETING_MAGIC:
            raise _Broken("this is no NBD server")
        if kind != OPTION_MAGIC:
            raise _Broken("the server speaks the oldstyle protocol, which we do not")
        flags = int.from_bytes(await self.reader.readexactly(GREETING.size - 16), "big")
        if not flags & GreetingFlag.FIXED_NEWSTYLE:
            raise _Broken("the server does not speak fixed newstyle")
        self.no_zeroes = bool(flags & GreetingFlag.NO_ZEROES)
        answer = ClientFlag.FIXED_NEWSTYLE
        if self.no_zeroes:
            answer |= ClientFlag.NO_ZEROES
        self.writer.write(CLIENT_FLAGS.pack(answer))

    async def ask(self, option: Option, data: bytes = b"") -> tuple[int, list[tuple[int, bytes]]]:
        """Send an option; the last reply's kind, and all replies."""
        self.writer.write(OPTION_HEADER.pack(OPTION_MAGIC, option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while True:
            head = await self.reader.readexactly(OPTION_REPLY.size)
            magic, to, kind, length = OPTION_REPLY.unpack(head)
            if magic != OPTION_REPLY_MAGIC or to != option or length > _MAX_REPLY:
                raise _Broken("a wrong answer to an option")
            body = await self.reader.readexactly(length)
            replies.append((kind, body))
            if len(replies) > _MAX_REPLIES:
                raise _Broken("too many answers to an option")
            if kind == OptionReply.ACK or kind & (1 << 31):
                return kind, replies

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

    async def agree(self, contexts: Sequence[str]) -> None:
        """On the form of replies and the metadata contexts."""
        kind, _ = await self.ask(Option.EXTENDED_HEADERS)
        self.extended = self.structured = kind == OptionReply.ACK
        if not self.extended:
            kind, _ = await self.ask(Option.STRUCTURED_REPLY)
            self.structured = kind == OptionReply.ACK
        if self.structured:
            queries = [_counted(name.encode()) for name in contexts]
            data = _counted(self.address.export.encode()) + len(queries).to_bytes(4, "big")
            kind, replies = await self.ask(Option.SET_META_CONTEXT, data + b"".join(queries))
            if kind == OptionReply.ACK:
                self._take_contexts(replies, contexts)

    def _take_contexts(self, replies: list[tuple[int, bytes]], wanted: Sequence[str]) -> None:
        for kind, body in replies:
            if kind != OptionReply.META_CONTEXT:
                continue
            name = body[4:].decode("utf-8", "replace")
            if len(body) < 5 or name not in wanted:
                raise _Broken("a metadata context that was not asked for")
            self.contexts[int.from_bytes(body[:4], "big")] = name

    async def go(self) -> None:
        """Choose the export."""
        name = self.address.export.encode()
        wishes = (InfoType.BLOCK_SIZE, InfoType.DESCRIPTION)
        data = _counted(name) + len(wishes).to_bytes(2, "big")
        data += b"".join(int(wish).to_bytes(2, "big") for wish in wishes)
        kind, replies = await self.ask(Option.GO, data)
        if kind == OptionReply.ERR_UNSUP:
            await self._export_name(name)
        elif kind != OptionReply.ACK:
            raise _refused(f"does not give {self.address.export!r}", kind, replies[-1][1])
        else:
            self.facts = _facts(replies)

    async def _export_name(self, name: bytes) -> None:
        """The way of older servers, which just hang up if they do not like the name."""
        self.writer.write(OPTION_HEADER.pack(OPTION_MAGIC, Option.EXPORT_NAME, len(name)) + name)
        data = await self.reader.readexactly(10 if self.no_zeroes else 134)
        flags = TransmissionFlag(int.from_bytes(data[8:10], "big"))
        self.facts = ExportFacts(_size(data[:8]), flags, block_sizes=(1, 4096, _MAX_BLOCK))


async def open_link(
    address: Address, tls: ssl.SSLContext | None, contexts: Sequence[str], seconds: float
) -> Link:
    """Connect and shake hands.

    Raises:
        StorageError: there is no server, or it does not give us the export.

    Cancellation: nothing stays open.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await _connect(address)
            talk = _Talk(reader, writer, address)
            await talk.greet()
            if tls is not None:
                await talk.start_tls(tls)
            await talk.agree(contexts)
            await talk.go()
        link, writer = Link(reader, writer, talk), None
        return link
    except TimeoutError as error:
        raise StorageError(errno.ETIMEDOUT, f"{address} does not answer") from error
    except asyncio.IncompleteReadError as error:
        raise StorageError(errno.ECONNRESET, f"{address} has hung up") from error
    except _Broken as error:
        raise StorageError(errno.EPROTO, f"{address}: {error}") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno or errno.EIO, f"{address}: {error}") from error
    finally:
        if writer is not None:
            await _hang_up(writer)


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.socket:
        return await asyncio.open_unix_connection(address.socket, limit=_READ_LIMIT)
    return await asyncio.open_connection(address.host, address.port, limit=_READ_LIMIT)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, asyncio.CancelledError):
        await asyncio.wait_for(writer.wait_closed(), 5)


def _counted(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


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


def _facts(replies: list[tuple[int, bytes]]) -> ExportFacts:
    size = flags = None
    sizes, description = (1, 4096, _MAX_BLOCK), ""
    for kind, body in replies:
        if kind != OptionReply.INFO or len(body) < 2:
            continue
        what = int.from_bytes(body[:2], "big")
        if what == InfoType.EXPORT and len(body) == 12:
            size, flags = _size(body[2:10]), int.from_bytes(body[10:], "big")
        elif what == InfoType.BLOCK_SIZE and len(body) == 14:
            sizes = _sizes(body)
        elif what == InfoType.DESCRIPTION:
            description = body[2 : 2 + MAX_NAME].decode("utf-8", "replace")
    if size is None or flags is None:
        raise _Broken("the server does not say how large the export is")
    return ExportFacts(size, TransmissionFlag(flags), description, sizes)


def _size(data: bytes) -> int:
    size = int.from_bytes(data, "big")
    if size > _MAX_SIZE:
        raise _Broken(f"an export of {size} bytes")
    return size


def _sizes(body: bytes) -> tuple[int, int, int]:
    least, preferred, most = (int.from_bytes(body[i : i + 4], "big") for i in (2, 6, 10))
    if least < 1 or least & (least - 1) or least > 64 << 10 or most < least:
        raise _Broken(f"block sizes of {least} to {most} bytes")
    return least, preferred, min(most, _MAX_BLOCK) // least * least
