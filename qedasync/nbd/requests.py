"""Requests out of a byte stream, and the bytes of replies. No I/O.

:class:`RequestReader` says where the next bytes are to be put, so that the payload of a large write
goes from the socket into its own buffer. What a request asks is checked when its header is there,
before a byte of memory is taken for its payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from qedasync.errors import QEDError
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

__all__ = ["ProtocolError", "Replies", "Request", "RequestReader"]

_BUFFER = 64 << 10
_DATA_CHUNK = Struct(">IHHQIQ")  # a chunk's header and the offset of its data
# Plain numbers for what every request meets.
_DONE, _NONE, _OFFSET_DATA = int(ChunkFlag.DONE), int(ChunkType.NONE), int(ChunkType.OFFSET_DATA)
_WRITE, _PAYLOAD_LEN = int(Command.WRITE), int(CommandFlag.PAYLOAD_LEN)


class ProtocolError(QEDError):
    """The peer breaks the protocol; nothing more can be understood of what it sends."""


@dataclass(slots=True)
class Request:
    """What a client wants.

    Attributes:
        command: a :class:`~qedasync.nbd.wire.Command`, or an unknown number.
        flags: :class:`~qedasync.nbd.wire.CommandFlag` bits, unknown ones too.
        cookie: the client's name for the request.
        offset, length: bytes.
        payload: what a write writes; empty for all else.
    """

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: bytearray


class RequestReader:
    """Takes a client's stream apart.

    Args:
        extended: whether the headers are the extended ones.
        max_payload: bytes of a payload that are taken.
        rest: bytes that came with the handshake.
    """

    def __init__(self, *, extended: bool, max_payload: int) -> None:
        self._extended = extended
        self._header = EXTENDED_REQUEST if extended else REQUEST
        self._magic = EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC
        self._max_payload = max_payload
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # what the buffer holds and nobody has looked at
        self._waiting: Request | None = None  # for its payload
        self._have = 0  # bytes of that
        self._drop = 0  # bytes of a payload that nobody wants
        self._direct = False  # whether the last buffer given was the payload's own

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to go."""
        if self._waiting is not None and self._start == self._end:
            self._direct = True
            return memoryview(self._waiting.payload)[self._have :]
        self._direct = False
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _BUFFER:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        return self._view[self._end :]

    def feed(self, data: bytes) -> list[Request]:
        """Take bytes from elsewhere; as :meth:`updated`."""
        requests: list[Request] = []
        pos = 0
        while pos < len(data):
            into = self.get_buffer()
            step = min(len(into), len(data) - pos)
            into[:step] = data[pos : pos + step]
            pos += step
            requests += self.updated(step)
        return requests

    def updated(self, count: int) -> list[Request]:
        """``count`` bytes have come into the buffer; answers the requests that are whole now.

        Raises:
            ProtocolError: this is no request.
        """
        requests: list[Request] = []
        if self._direct:
            self._have += count
        else:
            self._end += count
        while (request := self._next()) is not None:
            requests.append(request)
        return requests

    def _next(self) -> Request | None:
        if self._drop:
            passed = min(self._drop, self._end - self._start)
            self._start += passed
            self._drop -= passed
            if self._drop:
                return None
        if self._waiting is None:
            request = self._read_header()
            if request is None:
                return None
            if not request.payload:
                return request
            self._waiting, self._have = request, 0
        return self._read_payload(self._waiting)

    def _read_header(self) -> Request | None:
        if self._end - self._start < self._header.size:
            return None
        magic, flags, command, cookie, offset, length = self._header.unpack_from(
            self._buffer, self._start
        )
        if magic != self._magic:
            raise ProtocolError(f"the client sent {magic:#x} where a request begins")
        self._start += self._header.size
        carries = command == _WRITE or (self._extended and bool(flags & _PAYLOAD_LEN))
        if not carries or not length:
            return Request(command, flags, cookie, offset, length, bytearray())
        if length > self._max_payload:
            # Passing over it would mean reading on for as long as the client likes.
            raise ProtocolError(f"the client sends {length} bytes at once")
        return Request(command, flags, cookie, offset, length, bytearray(length))

    def _read_payload(self, request: Request) -> Request | None:
        want = len(request.payload) - self._have
        step = min(want, self._end - self._start)
        if step:
            source = self._view[self._start : self._start + step]
            request.payload[self._have : self._have + step] = source
            self._start += step
            self._have += step
        if self._have < len(request.payload):
            return None
        self._waiting = None
        return request


class Replies:
    """Makes replies in the form that one client understands.

    Args:
        structured: whether it takes structured replies.
        extended: whether it takes extended headers.
    """

    def __init__(self, *, structured: bool, extended: bool) -> None:
        self.structured = structured
        self.extended = extended

    def done(self, request: Request) -> list[bytes]:
        """It is done, and there is nothing to say."""
        if self.structured:
            return [self._chunk(request, _NONE, 0)]
        return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, Error.NONE, request.cookie)]

    def error(self, request: Request, number: Error, message: str = "") -> list[bytes]:
        """It failed."""
        if not self.structured:
            return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, number, request.cookie)]
        text = message.encode()[:4096]
        body = int(number).to_bytes(4, "big") + len(text).to_bytes(2, "big") + text
        return [self._chunk(request, ChunkType.ERROR, len(body)), body]

    def data(self, request: Request, data: bytes | bytearray) -> list[bytes | bytearray]:
        """All that a read asked for."""
        if not self.structured:
            return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, Error.NONE, request.cookie), data]
        if self.extended:
            header = self._chunk(request, _OFFSET_DATA, 8 + len(data))
            return [header + request.offset.to_bytes(8, "big"), data]
        length = 8 + len(data)
        return [
            _DATA_CHUNK.pack(
                STRUCTURED_REPLY_MAGIC, 1, _OFFSET_DATA, request.cookie, length, request.offset
            ),
            data,
        ]

    def part(
        self, request: Request, offset: int, data: bytes | bytearray, *, last: bool
    ) -> list[bytes | bytearray]:
        """Some of the bytes a read asked for."""
        header = self._chunk(request, ChunkType.OFFSET_DATA, 8 + len(data), last=last)
        return [header + offset.to_bytes(8, "big"), data]

    def hole(self, request: Request, offset: int, length: int, *, last: bool) -> list[bytes]:
        """Some of the bytes are zeroes."""
        header = self._chunk(request, ChunkType.OFFSET_HOLE, 12, last=last)
        return [header + offset.to_bytes(8, "big") + length.to_bytes(4, "big")]

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
        return [self._chunk(request, kind, len(head) + len(body), last=last), head, body]

    def _chunk(self, request: Request, kind: int, length: int, *, last: bool = True) -> bytes:
        flags = _DONE if last else 0
        if self.extended:
            return EXTENDED_CHUNK_HEADER.pack(
                EXTENDED_REPLY_MAGIC, flags, kind, request.cookie, request.offset, length
            )
        return CHUNK_HEADER.pack(STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, length)
