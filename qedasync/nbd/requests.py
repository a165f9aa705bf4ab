"""Requests out of a byte stream, and the bytes of replies. No I/O.

:class:`RequestReader` says where the next bytes are to be put, so that the payload of a large write
goes from the socket into its own buffer. What a request asks is checked when its header is there,
before a byte of memory is taken for its payload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import TypeAlias

from qedasync.errors import QEDError
from qedasync.nbd.buffers import BufferPool
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
    Error,
)

__all__ = ["SCRATCH_BYTES", "Finish", "ProtocolError", "Replies", "Request", "RequestReader"]

SCRATCH_BYTES = 256 << 10
"""Room for what comes at once."""

_LONG_PAYLOAD = 32 << 10
_DATA_CHUNK = Struct(">IHHQIQ")  # a chunk's header and the offset of its data
# Plain numbers for what every request meets.
_DONE, _NONE, _OFFSET_DATA = int(ChunkFlag.DONE), int(ChunkType.NONE), int(ChunkType.OFFSET_DATA)
_WRITE, _PAYLOAD_LEN = int(Command.WRITE), int(CommandFlag.PAYLOAD_LEN)


class ProtocolError(QEDError):
    """The peer breaks the protocol; nothing more can be understood of what it sends."""


_NOTHING = memoryview(b"")


@dataclass(slots=True)
class Request:
    """What a client wants.

    Attributes:
        command: a :class:`~qedasync.nbd.wire.Command`, or an unknown number.
        flags: :class:`~qedasync.nbd.wire.CommandFlag` bits, unknown ones too.
        cookie: the client's name for the request.
        offset, length: bytes.
        payload: what a write writes; empty for all else. See :meth:`keep`.
        kept: whether the payload has a buffer of its own, from the pool.
    """

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: memoryview = _NOTHING
    kept: bool = False

    def keep(self, pool: BufferPool) -> None:
        """Make the payload outlast the reader's next :meth:`~RequestReader.get_buffer`."""
        if not self.kept and self.payload:
            own = pool.take(len(self.payload))
            own[:] = self.payload
            self.payload, self.kept = own, True

    def release(self, pool: BufferPool) -> None:
        """Nobody needs the payload any more."""
        if self.kept:
            pool.give(self.payload)
            self.payload, self.kept = _NOTHING, False


Finish: TypeAlias = Callable[[int, int, int, int, int, memoryview], bool]
"""Gets a request's command, flags, cookie, offset, length and payload, and says whether it has been
done. For most it has, and making a :class:`Request` would take as long as half of that.
"""


def finish_nothing(*request: object) -> bool:
    """A :data:`Finish` that leaves all to others."""
    return False


class RequestReader:
    """Takes a client's stream apart.

    The scratch buffer may be shared by all readers of a thread: a reader keeps what it holds of a
    request itself. It needs the scratch from :meth:`get_buffer` to the end of :meth:`updated`, and
    for the payloads of the requests that has answered until somebody's next :meth:`get_buffer`.

    Args:
        extended: whether the headers are the extended ones.
        max_payload: bytes of a payload that are taken.
        finish: is offered each request that is whole, before anybody else gets it.
        scratch: where requests come to lie, of :data:`SCRATCH_BYTES`.
        pool: where buffers for long payloads come from.
    """

    def __init__(
        self,
        *,
        extended: bool,
        max_payload: int,
        finish: Finish = finish_nothing,
        scratch: bytearray | None = None,
        pool: BufferPool | None = None,
    ) -> None:
        self._extended = extended
        self._header = EXTENDED_REQUEST if extended else REQUEST
        self._magic = EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC
        self._max_payload = max_payload
        self._finish = finish
        self._scratch = bytearray(SCRATCH_BYTES) if scratch is None else scratch
        self._view = memoryview(self._scratch)
        self._pool = BufferPool() if pool is None else pool
        self._rest = b""  # the beginning of a request
        self._waiting: Request | None = None  # for a long payload
        self._have = 0  # bytes of that

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to go."""
        if self._waiting is not None:
            return self._waiting.payload[self._have :]
        if self._rest:
            self._scratch[: len(self._rest)] = self._rest
            return self._view[len(self._rest) :]
        return self._view

    def feed(self, data: bytes) -> list[Request]:
        """Take bytes from elsewhere; as :meth:`updated`, and the payloads are kept."""
        requests: list[Request] = []
        pos = 0
        while pos < len(data):
            into = self.get_buffer()
            step = min(len(into), len(data) - pos)
            into[:step] = data[pos : pos + step]
            pos += step
            for request in self.updated(step):
                request.keep(self._pool)
                requests.append(request)
        return requests

    def updated(self, count: int) -> list[Request]:
        """``count`` bytes have come into the buffer; answers the requests that are whole now, and
        have not been finished.

        Raises:
            ProtocolError: this is no request.
        """
        if self._waiting is not None:
            return self._payload_came(self._waiting, count)
        requests: list[Request] = []
        scratch, unpack_from, size = self._scratch, self._header.unpack_from, self._header.size
        wanted, finish, extended = self._magic, self._finish, self._extended
        start, end = 0, len(self._rest) + count
        while end - start >= size:
            magic, flags, command, cookie, offset, length = unpack_from(scratch, start)
            if magic != wanted:
                raise ProtocolError(f"the client sent {magic:#x} where a request begins")
            payload = _NOTHING
            stop = start + size
            if command == _WRITE or (flags & _PAYLOAD_LEN and extended):
                stop += length
                if stop > end:
                    self._await_payload(Request(command, flags, cookie, offset, length), start, end)
                    break
                payload = self._view[stop - length : stop]
            start = stop
            if not finish(command, flags, cookie, offset, length, payload):
                requests.append(Request(command, flags, cookie, offset, length, payload))
        self._rest = bytes(self._view[start:end]) if self._waiting is None else b""
        return requests

    def _await_payload(self, request: Request, start: int, end: int) -> None:
        """A request begins at ``start`` whose payload is not all there.

        A short one is waited for where it is, so that what follows it comes along; a long one gets
        its own buffer for what is still to come.
        """
        length = request.length
        if length > self._max_payload:
            # Passing over it would mean reading on for as long as the client likes.
            raise ProtocolError(f"the client sends {length} bytes at once")
        if length > _LONG_PAYLOAD:
            start += self._header.size
            self._waiting, self._have = request, end - start
            request.payload, request.kept = self._pool.take(length), True
            request.payload[: self._have] = self._view[start:end]

    def _payload_came(self, request: Request, count: int) -> list[Request]:
        self._have += count
        if self._have < request.length:
            return []
        self._waiting = None
        return [request]


class Replies:
    """Makes replies in the form that one client understands.

    Args:
        structured: whether it takes structured replies.
        extended: whether it takes extended headers.
    """

    def __init__(self, *, structured: bool, extended: bool) -> None:
        self.structured = structured
        self.extended = extended

    def done(self, cookie: int, offset: int) -> bytes:
        """It is done, and there is nothing to say."""
        if self.structured:
            return self._chunk(cookie, offset, _NONE, 0)
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def head(self, cookie: int, offset: int, length: int) -> bytes:
        """What comes before all the bytes that a read asked for."""
        if not self.structured:
            return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        if self.extended:
            header = self._chunk(cookie, offset, _OFFSET_DATA, 8 + length)
            return header + offset.to_bytes(8, "big")
        return _DATA_CHUNK.pack(
            STRUCTURED_REPLY_MAGIC, _DONE, _OFFSET_DATA, cookie, 8 + length, offset
        )

    def error(self, request: Request, number: Error, message: str = "") -> list[bytes]:
        """It failed."""
        if not self.structured:
            return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, number, request.cookie)]
        text = message.encode()[:4096]
        body = int(number).to_bytes(4, "big") + len(text).to_bytes(2, "big") + text
        return [self._chunk(request.cookie, request.offset, ChunkType.ERROR, len(body)), body]

    def part(self, request: Request, offset: int, length: int, *, last: bool) -> bytes:
        """What comes before some of the bytes a read asked for."""
        header = self._chunk(
            request.cookie, request.offset, ChunkType.OFFSET_DATA, 8 + length, last=last
        )
        return header + offset.to_bytes(8, "big")

    def hole(self, request: Request, offset: int, length: int, *, last: bool) -> bytes:
        """Some of the bytes are zeroes."""
        header = self._chunk(request.cookie, request.offset, ChunkType.OFFSET_HOLE, 12, last=last)
        return header + offset.to_bytes(8, "big") + length.to_bytes(4, "big")

    def status(
        self, request: Request, context: int, runs: Sequence[tuple[int, int]], *, last: bool
    ) -> list[bytes]:
        """Runs (length, flags) in one metadata context."""
        if self.extended:
            body = b"".join([BLOCK_DESCRIPTOR_EXT.pack(*run) for run in runs])
            head = context.to_bytes(4, "big") + len(runs).to_bytes(4, "big")
            kind = ChunkType.BLOCK_STATUS_EXT
        else:
            body = b"".join([BLOCK_DESCRIPTOR.pack(*run) for run in runs])
            head, kind = context.to_bytes(4, "big"), ChunkType.BLOCK_STATUS
        return [
            self._chunk(request.cookie, request.offset, kind, len(head) + len(body), last=last),
            head,
            body,
        ]

    def _chunk(
        self, cookie: int, offset: int, kind: int, length: int, *, last: bool = True
    ) -> bytes:
        flags = _DONE if last else 0
        if self.extended:
            return EXTENDED_CHUNK_HEADER.pack(
                EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length
            )
        return CHUNK_HEADER.pack(STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)
