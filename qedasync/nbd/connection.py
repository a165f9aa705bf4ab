"""One client: a protocol of the event loop around the pure parts.

Requests run side by side, and their replies leave in the order in which they are done. What is done
inline leaves in one piece at the end of what came in one piece. A client that sends faster than it
reads, or asks for more than its share at once, is not read from until it has caught up; nobody else
waits for it. What goes wrong with a client ends that client alone.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from qedasync.nbd.counters import BUCKETS
from qedasync.nbd.eager import run_eagerly
from qedasync.nbd.export import MAX_REQUEST, SPARSE_FROM, Export
from qedasync.nbd.handshake import Outcome, ServerHandshake
from qedasync.nbd.requests import ProtocolError, Replies, Request, RequestReader
from qedasync.nbd.wire import Command

if TYPE_CHECKING:
    from qedasync.nbd.server import Server

__all__ = ["Connection"]

_HANDSHAKE_BUFFER = 4096
_JOIN_BYTES = 64 << 10  # a larger buffer is sent by itself, not copied
_COMMANDS = {int(command): command.name.lower() for command in Command}
# Plain numbers: comparing members of an enum takes several times as long.
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_MOVES_DATA = frozenset({_READ, _WRITE})


class Connection(asyncio.BufferedProtocol):
    """A client of a :class:`~qedasync.nbd.server.Server`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits = server.limits
        self._counters = server.counters
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._handshake: ServerHandshake | None = None
        self._inside_tls = False
        self._early: bytearray | None = None  # what came between STARTTLS and TLS
        self._small = memoryview(bytearray(_HANDSHAKE_BUFFER))
        self._reader: RequestReader | None = None
        self._replies = Replies(structured=False, extended=False)
        self._export: Export | None = None
        self._try_pread: Callable[[int, int], bytearray | None] | None = None
        self._try_pwrite: Callable[[bytearray, int], bool] | None = None
        self._contexts: dict[str, int] = {}
        self._out: list[bytes | bytearray] = []
        self._flush_due = False
        self._in_flight = self._bytes = 0
        self._reading_paused = self._writing_paused = False
        self._ending = False  # nothing more is read; hang up when the last reply has left
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self._transport = transport
        if self._handshake is not None:
            return  # the same connection, inside TLS now
        if not self._server.admit(self):
            transport.abort()

    def begin(self) -> None:
        """Greet the client: its turn has come."""
        self._timer = self._loop.call_later(self._limits.handshake_seconds, self._too_slow)
        self._handshake = self._server.new_handshake()
        self._send([self._handshake.take_output()])

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._ending = True
        self._stop_timer()
        self._out.clear()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._small if self._reader is None else self._reader.get_buffer()

    def buffer_updated(self, count: int) -> None:
        try:
            if self._reader is None:
                self._go_on_shaking(bytes(self._small[:count]))
            else:
                self._begin(self._reader.updated(count))
        except ProtocolError as error:
            self._fail(str(error))

    def eof_received(self) -> bool:
        self.end()
        return self._transport is not None and not self._inside_tls  # TLS has no half-open state

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._balance()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._balance()

    # ----------------------------------------------------------- the handshake

    def _go_on_shaking(self, data: bytes) -> None:
        handshake = self._handshake
        if self._early is not None:  # inside TLS already, and nobody has told us yet
            self._early += data
            if len(self._early) > _HANDSHAKE_BUFFER:
                self._fail("too much at once")
            return
        if handshake is None:
            self._fail("it spoke before it was greeted")
            return
        if handshake.outcome is not None:
            return
        outcome = handshake.receive(data)
        self._send([handshake.take_output()])
        if outcome is Outcome.TRANSMISSION:
            self._enter(handshake)
        elif outcome is Outcome.STARTTLS:
            assert self._transport is not None
            self._transport.pause_reading()
            self._early = bytearray()
            self._server.start_task(self._start_tls(handshake), "TLS")
        elif outcome is Outcome.CLOSE:
            self.end()

    async def _start_tls(self, handshake: ServerHandshake) -> None:
        transport, context = self._transport, self._server.tls
        if transport is None or context is None:
            return
        try:
            inside = await self._loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=self._limits.handshake_seconds,
            )
        except (TimeoutError, OSError, ssl.SSLError):
            self._fail("the TLS handshake failed")
            return
        if inside is None:
            return
        self._transport = inside
        self._inside_tls = True
        if not self._server.allows(inside.get_extra_info("peercert")):
            self._fail("the client's certificate is not on the list")
            return
        self._handshake = handshake.after_tls()
        early, self._early = self._early, None
        if early:
            self._go_on_shaking(bytes(early))

    def _enter(self, handshake: ServerHandshake) -> None:
        """From here on there are requests."""
        self._stop_timer()
        export = self._export = self._server.exports[handshake.export_name]
        self._try_pread, self._try_pwrite = export.try_pread, export.try_pwrite
        self._contexts = handshake.contexts
        self._replies = Replies(structured=handshake.structured, extended=handshake.extended)
        self._reader = RequestReader(extended=handshake.extended, max_payload=MAX_REQUEST)
        self._begin(self._reader.feed(handshake.rest))

    def _too_slow(self) -> None:
        self._fail("the handshake took too long")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------ transmission

    def _begin(self, requests: list[Request]) -> None:
        begin = perf_counter()
        inline = 0
        for request in requests:
            if self._ending:
                break
            if self._finish_now(request):
                inline += 1
                continue
            if request.command == _DISC:
                self.end()
                break
            self._in_flight += 1
            weight = request.length if request.command in _MOVES_DATA else 0
            self._bytes += weight
            run_eagerly(self._serve(request, weight), self._start_request)
        if inline:
            seconds = perf_counter() - begin
            self._counters.latency_sum += seconds
            self._counters.latency[_bucket(seconds / inline)] += inline
        self._flush()
        self._balance()

    def _finish_now(self, request: Request) -> bool:
        """A plain read or write that the disk can do at once: no coroutine, no task."""
        if request.flags:
            return False
        length = request.length
        if request.command == _READ:
            if length >= SPARSE_FROM or self._try_pread is None:
                return False
            data = self._try_pread(length, request.offset)
            if data is None:
                return False
            self._out += self._replies.data(request, data)
            self._counters.inline_reads += 1
            self._counters.bytes_read += length
            return True
        if request.command == _WRITE and length and self._try_pwrite is not None:
            if not self._try_pwrite(request.payload, request.offset):
                return False
            self._out += self._replies.done(request)
            self._counters.inline_writes += 1
            self._counters.bytes_written += length
            return True
        return False

    def _start_request(self, work: Coroutine[Any, Any, None]) -> None:
        self._server.start_task(work, "request")

    async def _serve(self, request: Request, weight: int) -> None:
        export, counters = self._export, self._counters
        assert export is not None
        begin = perf_counter()
        counters.in_flight += 1
        counters.bytes_in_flight += weight
        try:
            reply = await export.answer(request, self._replies, self._contexts)
            self._count(request, perf_counter() - begin)
            self._reply(reply)
        finally:
            counters.in_flight -= 1
            counters.bytes_in_flight -= weight
            self._in_flight -= 1
            self._bytes -= weight
            self._balance()

    def _count(self, request: Request, seconds: float) -> None:
        counters = self._counters
        name = _COMMANDS.get(request.command, "unknown")
        counters.requests[name] = counters.requests.get(name, 0) + 1
        if request.command == _READ:
            counters.bytes_read += request.length
        elif request.command == _WRITE:
            counters.bytes_written += request.length
        counters.latency_sum += seconds
        counters.latency[_bucket(seconds)] += 1

    def _reply(self, parts: Any) -> None:
        self._out += parts
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what is done."""
        self._flush_due = False
        out, self._out = self._out, []
        self._send(out)
        if self._ending and not self._in_flight and self._transport is not None:
            self._transport.close()

    def _send(self, parts: list[bytes | bytearray]) -> None:
        transport = self._transport
        if transport is None or not parts:
            return
        small: list[bytes | bytearray] = []
        for part in parts:
            if len(part) <= _JOIN_BYTES:
                small.append(part)
                continue
            if small:
                transport.write(b"".join(small))
                small = []
            transport.write(part)
        if small:
            transport.write(b"".join(small))

    # ------------------------------------------------------------- housekeeping

    def _balance(self) -> None:
        """Read on, or wait until the client has caught up."""
        transport = self._transport
        if transport is None or self._reader is None:
            return
        full = (
            self._writing_paused
            or self._in_flight >= self._limits.requests_in_flight
            or self._bytes >= self._limits.bytes_in_flight
        )
        if full != self._reading_paused and not transport.is_closing():
            self._reading_paused = full
            if full:
                transport.pause_reading()
            elif not self._ending:
                transport.resume_reading()
        if self._ending and not self._in_flight and not self._flush_due:
            self._flush()

    def end(self) -> None:
        """Take no more requests; hang up when those in flight are answered."""
        if self._ending:
            return
        self._ending = True
        if self._transport is None:
            return
        if self._reader is None or not self._in_flight:
            self._flush()
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """Hang up now; requests in flight run to their end all the same."""
        self._ending = True
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, reason: str) -> None:
        """The client's fault: this connection ends, and no other."""
        self._server.note_fault(self, reason)
        self.abort()


def _bucket(seconds: float) -> int:
    for number, bound in enumerate(BUCKETS):
        if seconds <= bound:
            return number
    return len(BUCKETS)
