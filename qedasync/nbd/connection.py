"""One client: a protocol of the event loop around the pure parts.

Requests run side by side, and their replies leave in the order in which they are done. A client
that sends faster than it reads, or asks for more than its share at once, is not read from until it
has caught up; nobody else waits for it. What goes wrong with a client ends that client alone.

What comes at once is done in the order of its coming, as far as the disk need not wait, and the
rest is started then. Of what is done at once a few replies leave together, so that the client works
while we do the next: with one at a time the calls would cost more than that gains.
"""

from __future__ import annotations

import asyncio
import ssl
from bisect import bisect_left
from collections.abc import Callable, Coroutine
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from qedasync import QEDError
from qedasync.nbd.counters import BUCKETS
from qedasync.nbd.eager import run_eagerly
from qedasync.nbd.export import MAX_REQUEST, SPARSE_FROM, Export, failure
from qedasync.nbd.handshake import Outcome, ServerHandshake
from qedasync.nbd.outgoing import Outgoing
from qedasync.nbd.requests import ProtocolError, Replies, Request, RequestReader
from qedasync.nbd.wire import Command

if TYPE_CHECKING:
    from qedasync.nbd.server import Server

__all__ = ["Connection"]

T = TypeVar("T")

_HANDSHAKE_BUFFER = 4096
_COMMANDS = {int(command): command.name.lower() for command in Command}
# Plain numbers: comparing members of an enum takes several times as long.
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_MOVES_DATA = frozenset({_READ, _WRITE})
_PARTS_TOGETHER = 6  # three replies to reads, or six to writes


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
        self._small = memoryview(server.scratch)[:_HANDSHAKE_BUFFER]
        self._reader: RequestReader | None = None
        self._replies = Replies(structured=False, extended=False)
        self._export: Export  # from the handshake's end on
        self._try_pread: Callable[[int, int], bytearray | None] | None = None
        self._try_pwrite: Callable[[memoryview, int], bool] | None = None
        self._contexts: dict[str, int] = {}
        self._outgoing = Outgoing(self._loop, server.pool)
        self._out = self._outgoing.parts
        self._flush_due = False
        self._waiting: list[Request] = []
        self._going_on = False
        self._in_flight = self._bytes = 0
        self._reading_paused = False
        self._hanging_up = False  # nothing more is done at once
        self._ending = False  # nothing more is read; hang up when the last reply has left
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self._transport = transport
        if self._handshake is not None:
            return  # the same connection, inside TLS now
        self._outgoing.use(transport, inside_tls=False)
        if not self._server.admit(self):
            transport.abort()

    def begin(self) -> None:
        """Greet the client: its turn has come."""
        self._timer = self._loop.call_later(self._limits.handshake_seconds, self._too_slow)
        self._handshake = self._server.new_handshake()
        self._outgoing.write(self._handshake.take_output())

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._ending = self._hanging_up = True
        self._stop_timer()
        self._outgoing.lost()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._small if self._reader is None else self._reader.get_buffer()

    def buffer_updated(self, count: int) -> None:
        try:
            if self._reader is None:
                self._go_on_shaking(bytes(self._small[:count]))
            else:
                self._requests_came(self._reader.updated, count)
        except ProtocolError as error:
            self._fail(str(error))

    def eof_received(self) -> bool:
        self.end()
        return self._transport is not None and not self._inside_tls  # TLS has no half-open state

    def pause_writing(self) -> None:
        self._outgoing.lagging = True
        self._balance()

    def resume_writing(self) -> None:
        self._outgoing.caught_up()
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
        self._outgoing.write(handshake.take_output())
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
        self._outgoing.use(inside, inside_tls=True)
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
        self._reader = RequestReader(
            extended=handshake.extended,
            max_payload=MAX_REQUEST,
            scratch=self._server.scratch,
            pool=self._server.pool,
            finish=self._finish,
        )
        self._requests_came(self._reader.feed, handshake.rest)

    def _too_slow(self) -> None:
        self._fail("the handshake took too long")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------ transmission

    def _requests_came(self, read: Callable[[T], list[Request]], what: T) -> None:
        counters, begin = self._counters, perf_counter()
        before = counters.inline_reads + counters.inline_writes
        requests = read(what)
        done = counters.inline_reads + counters.inline_writes - before
        if done:
            seconds = perf_counter() - begin
            counters.latency_sum += seconds
            counters.latency[bisect_left(BUCKETS, seconds / done)] += done
            self._export.note_inline(done)
        self._begin(requests)

    def _begin(self, requests: list[Request], *, patient: bool = True) -> None:
        """Start what could not be done at once, and send what was.

        Args:
            patient: whether a long read that comes first may wait for the next turn, if the disk
                has done as much as it may in this one; those behind it may. Tasks would take their
                shares of the turns to come.
        """
        for number, request in enumerate(requests):
            if self._ending:
                break
            long = _is_long_read(request)
            if self._has_its_share or (long and self._outgoing.lagging):
                self._put_off(requests[number:])
                break
            if long and self._finish_long(request):
                continue
            if long and (patient or number) and self._export.renewed_soon():
                self._put_off(requests[number:])
                break
            self._start(request)
        self._flush()
        self._balance()

    def _finish(
        self, command: int, flags: int, cookie: int, offset: int, length: int, payload: memoryview
    ) -> bool:
        """A plain read or write that the disk can do at once: no coroutine, no task."""
        if flags or self._hanging_up:
            return False
        if command == _READ:
            if length >= SPARSE_FROM or self._try_pread is None:
                return False
            data = self._try_pread(length, offset)
            if data is None:
                return False
            self._out.append(self._replies.head(cookie, offset, length))
            self._out.append(data)
            self._counters.inline_reads += 1
            self._counters.bytes_read += length
            if len(self._out) >= _PARTS_TOGETHER:
                self._outgoing.flush()
            return True
        if command == _WRITE:
            if self._try_pwrite is None or not length or not self._try_pwrite(payload, offset):
                return False
            self._out.append(self._replies.done(cookie, offset))
            self._counters.inline_writes += 1
            self._counters.bytes_written += length
            if len(self._out) >= _PARTS_TOGETHER:
                self._outgoing.flush()
            return True
        self._hanging_up = command == _DISC
        return False

    def _finish_long(self, request: Request) -> bool:
        """A long read of one piece, likewise."""
        if not self._send_from_file(request):
            piece = self._export.try_read_long(request, self._replies, self._server.pool)
            if piece is None:
                return False
            self._outgoing.send(piece)
        self._counters.inline_reads += 1
        self._counters.bytes_read += request.length
        return True

    def _send_from_file(self, request: Request) -> bool:
        """Without a copy of ours."""
        if not self._outgoing.takes_files:
            return False
        place = self._export.try_locate(request)
        if place is None:
            return False
        head = self._replies.head(request.cookie, request.offset, request.length)
        self._outgoing.send_file(head, *place, request.length)
        return True

    @property
    def _has_its_share(self) -> bool:
        """Whether the client has as much in flight as it may."""
        limits = self._limits
        return self._in_flight >= limits.requests_in_flight or self._bytes >= limits.bytes_in_flight

    def _put_off(self, requests: list[Request]) -> None:
        """More came at once than may be in flight, or than the client takes: the rest waits, and
        nothing more is read.
        """
        for request in requests:
            request.keep(self._server.pool)
        self._waiting = requests

    def _go_on(self) -> None:
        self._going_on = False
        requests, self._waiting = self._waiting, []
        left = [request for request in requests if not self._finish_again(request)]
        self._begin(left, patient=False)

    def _finish_again(self, request: Request) -> bool:
        one = request
        if self._finish(one.command, one.flags, one.cookie, one.offset, one.length, one.payload):
            request.release(self._server.pool)
            return True
        return False

    def _start(self, request: Request) -> None:
        """Serve a request that may have to wait."""
        if request.command == _DISC:
            self.end()
            return
        request.keep(self._server.pool)
        weight = _weight(request)
        self._in_flight += 1
        self._bytes += weight
        self._server.request_began(weight)
        if not self._write_soon(request):
            run_eagerly(self._serve(request), self._start_request)

    def _write_soon(self, request: Request) -> bool:
        """A plain write into a new cluster: no task waits for that."""
        if request.command != _WRITE or request.flags or self._export.pwrite_soon is None:
            return False
        done = partial(self._written, request, perf_counter())
        return self._export.pwrite_soon(request.payload, request.offset, done)

    def _written(self, request: Request, begin: float, error: QEDError | None) -> None:
        if error is None:
            self._reply([self._replies.done(request.cookie, request.offset)])
        else:
            self._reply(failure(request, self._replies, error))
        self._count(request, perf_counter() - begin)
        self._ended(request)

    def _start_request(self, work: Coroutine[Any, Any, None]) -> None:
        self._server.start_task(work, "request")

    async def _serve(self, request: Request) -> None:
        export, begin = self._export, perf_counter()
        try:
            if _is_long_read(request):
                await self._stream(request, export)
            else:
                self._reply(await export.answer(request, self._replies, self._contexts))
            self._count(request, perf_counter() - begin)
        finally:
            self._ended(request)

    def _ended(self, request: Request) -> None:
        weight = _weight(request)
        request.release(self._server.pool)
        self._in_flight -= 1
        self._bytes -= weight
        self._server.request_ended(weight)
        self._balance()

    async def _stream(self, request: Request, export: Export) -> None:
        """Answer a long read piece by piece, so that the client has one while we read the next."""
        refused = export.refusal(request, self._replies, self._contexts)
        if refused is not None:
            self._reply(self._replies.error(request, refused.error, refused.message))
            return
        try:
            pieces = export.read_long(request, self._replies, self._server.pool)
            await self._outgoing.stream(pieces)
        except (QEDError, MemoryError) as error:
            self._reply(failure(request, self._replies, error))

    def _count(self, request: Request, seconds: float) -> None:
        counters = self._counters
        name = _COMMANDS.get(request.command, "unknown")
        counters.requests[name] = counters.requests.get(name, 0) + 1
        if request.command == _READ:
            counters.bytes_read += request.length
        elif request.command == _WRITE:
            counters.bytes_written += request.length
        counters.latency_sum += seconds
        counters.latency[bisect_left(BUCKETS, seconds)] += 1

    def _reply(self, parts: Any) -> None:
        self._out += parts
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what is done."""
        self._flush_due = False
        self._outgoing.flush()
        if self._ending and not self._in_flight and self._transport is not None:
            self._transport.close()

    # ------------------------------------------------------------- housekeeping

    def _balance(self) -> None:
        """Read on, or wait until the client has caught up."""
        transport = self._transport
        if transport is None or self._reader is None:
            return
        busy = self._outgoing.lagging or self._has_its_share
        full = busy or bool(self._waiting)
        if self._waiting and not busy and not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._go_on)
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
        self._ending = self._hanging_up = True
        if self._transport is None:
            return
        if self._reader is None or not self._in_flight:
            self._flush()
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """Hang up now; requests in flight run to their end all the same."""
        self._ending = self._hanging_up = True
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, reason: str) -> None:
        """The client's fault: this connection ends, and no other."""
        self._server.note_fault(self, reason)
        self.abort()


def _weight(request: Request) -> int:
    """What it counts of a client's bytes in flight."""
    return request.length if request.command in _MOVES_DATA else 0


def _is_long_read(request: Request) -> bool:
    """Whether the reply may leave in pieces."""
    return request.command == _READ and request.length >= SPARSE_FROM and not request.flags
