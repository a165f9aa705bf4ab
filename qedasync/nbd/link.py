"""One connection of a client after its handshake: requests out, replies in.

What a server sends is believed no more than what a client sends: names, lengths and cookies are
checked before memory is taken, and a server that breaks the protocol is hung up on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from qedasync.errors import StorageError
from qedasync.nbd.handshake import ExportFacts
from qedasync.nbd.wire import (
    BLOCK_DESCRIPTOR,
    BLOCK_DESCRIPTOR_EXT,
    CHUNK_HEADER,
    EXTENDED_CHUNK_HEADER,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST,
    EXTENDED_REQUEST_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkFlag,
    ChunkType,
    Command,
    CommandFlag,
    to_errno,
)

__all__ = ["READ_LIMIT", "Agreement", "Link", "LinkLost", "ServerFault", "hang_up"]

READ_LIMIT = 1 << 20
"""Bytes that the stream keeps of what has come and nobody has read."""

_MAX_RUNS = 1 << 16  # of one block status that are kept; one asks again from there
_MAX_BODY = 8 + (16 << 20)  # bytes of a chunk that is not data; as many as a million long runs

Buffer = bytes | bytearray | memoryview


class LinkLost(Exception):
    """The connection has ended; what was in flight may or may not have been carried out."""


class ServerFault(Exception):
    """The server breaks the protocol."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a handshake came to.

    Attributes:
        facts: the export.
        structured, extended: the form of replies and requests.
        contexts: the metadata contexts, number to name.
    """

    facts: ExportFacts
    structured: bool = False
    extended: bool = False
    contexts: dict[int, str] = field(default_factory=dict)


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
    """A connection after its handshake; made by :func:`.client_handshake.open_link`.

    Attributes:
        facts: what the server says of the export.
        contexts: the metadata contexts agreed on, number to name.
        lost: whether it has ended.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        agreed: Agreement,
    ) -> None:
        self.facts = agreed.facts
        self.contexts = agreed.contexts
        self.lost = False
        self._structured, self._extended = agreed.structured, agreed.extended
        self._header = EXTENDED_REQUEST if agreed.extended else REQUEST
        self._magic = EXTENDED_REQUEST_MAGIC if agreed.extended else REQUEST_MAGIC
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
        header = self._header.pack(self._magic, flags, command, cookie, offset, length)
        # A copy: a loop may send it later, and whoever is cancelled has the payload back at once.
        self._writer.write(b"".join((header, payload)))
        if len(payload):
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
        await hang_up(self._writer)

    # ---------------------------------------------------------------- replies

    async def _read_replies(self) -> None:
        reason = "the client has closed it"
        try:
            while True:
                await self._read_reply()
        except asyncio.IncompleteReadError:
            reason = "the server has hung up"
        except ServerFault as error:
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
            raise ServerFault(f"{magic:#x} where a reply begins")

    async def _read_simple(self) -> None:
        rest = await self._reader.readexactly(SIMPLE_REPLY.size - 4)
        error, cookie = int.from_bytes(rest[:4], "big"), int.from_bytes(rest[4:], "big")
        pending = self._find(cookie)
        if self._structured and pending.command in (Command.READ, Command.BLOCK_STATUS):
            raise ServerFault("a simple reply where it has to be structured")
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
                raise ServerFault(f"a chunk of {length} bytes")
            self._take_chunk(pending, kind, await self._reader.readexactly(length))
        if flags & ChunkFlag.DONE:
            self._finish(cookie, pending)

    async def _read_data(self, pending: _Pending, length: int) -> None:
        if pending.command != Command.READ or length < 9:
            raise ServerFault("data that nobody asked for")
        offset = int.from_bytes(await self._reader.readexactly(8), "big")
        await self._fill(pending, self._inside(pending, offset, length - 8), length - 8)

    def _take_chunk(self, pending: _Pending, kind: int, body: bytes) -> None:
        if kind == ChunkType.NONE:
            if body:
                raise ServerFault("an empty chunk with a body")
        elif kind == ChunkType.OFFSET_HOLE:
            self._take_hole(pending, body)
        elif kind in (ChunkType.BLOCK_STATUS, ChunkType.BLOCK_STATUS_EXT):
            self._take_status(pending, kind, body)
        elif kind & (1 << 15):
            size = int.from_bytes(body[4:6], "big")
            if len(body) < 6 or size > len(body) - 6:
                raise ServerFault("an error whose lengths do not fit")
            text = body[6 : 6 + size].decode("utf-8", "replace")
            number = int.from_bytes(body[:4], "big")
            pending.error = pending.error or _failure(number, text, pending)
        else:
            raise ServerFault(f"a chunk of the unknown kind {kind}")

    def _take_hole(self, pending: _Pending, body: bytes) -> None:
        if len(body) != 12 or pending.command != Command.READ:
            raise ServerFault("a hole that nobody asked for")
        offset, length = int.from_bytes(body[:8], "big"), int.from_bytes(body[8:], "big")
        start = self._inside(pending, offset, length)
        assert pending.buffer is not None
        pending.buffer[start : start + length] = bytes(length)
        pending.filled += length

    def _take_status(self, pending: _Pending, kind: int, body: bytes) -> None:
        extended = kind == ChunkType.BLOCK_STATUS_EXT
        if pending.command != Command.BLOCK_STATUS or extended != self._extended:
            raise ServerFault("a block status that nobody asked for")
        head, form = (8, BLOCK_DESCRIPTOR_EXT) if extended else (4, BLOCK_DESCRIPTOR)
        name = self.contexts.get(int.from_bytes(body[:4], "big"))
        count, rest = divmod(len(body) - head, form.size)
        if count < 1 or rest or name is None or name in pending.status:
            raise ServerFault("a block status whose parts do not fit")
        if extended and int.from_bytes(body[4:8], "big") != count:
            raise ServerFault("a block status that does not have as many runs as it says")
        runs = islice(form.iter_unpack(memoryview(body)[head:]), _MAX_RUNS)
        pending.status[name] = list(runs)

    def _inside(self, pending: _Pending, offset: int, length: int) -> int:
        """Where in the buffer that is."""
        start = offset - pending.start
        if start < 0 or not length or start + length > pending.length:
            raise ServerFault("a part of a read from outside of it")
        if pending.filled + length > pending.length:
            raise ServerFault("more data than were asked for")
        return start

    async def _fill(self, pending: _Pending, start: int, length: int) -> None:
        buffer = pending.buffer
        assert buffer is not None
        end = start + length
        pending.filled += length
        while start < end:
            data = await self._reader.read(min(end - start, READ_LIMIT))
            if not data:
                raise asyncio.IncompleteReadError(b"", end - start)
            buffer[start : start + len(data)] = data
            start += len(data)

    def _find(self, cookie: int) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise ServerFault(f"a reply to the request {cookie}, which there is not")
        return pending

    def _finish(self, cookie: int, pending: _Pending) -> None:
        if (
            pending.command == Command.READ
            and pending.error is None
            and pending.filled != pending.length
        ):
            raise ServerFault("a read that is not whole")
        del self._pending[cookie]
        if not pending.future.done():
            pending.future.set_result(None)


def _failure(number: int, text: str, pending: _Pending) -> StorageError:
    return StorageError(to_errno(number), text or None, offset=pending.start, length=pending.length)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection; wait a little for it."""
    writer.close()
    with suppress(OSError, asyncio.CancelledError):
        await asyncio.wait_for(writer.wait_closed(), 5)
