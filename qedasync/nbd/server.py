"""The server: listens, keeps its clients apart, and drains them when it closes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from qedasync import Disk, Opening
from qedasync.errors import RequestError, StorageError
from qedasync.nbd.buffers import BufferPool
from qedasync.nbd.connection import Connection
from qedasync.nbd.counters import Counters
from qedasync.nbd.export import Export
from qedasync.nbd.handshake import ExportFacts, ServerHandshake
from qedasync.nbd.requests import SCRATCH_BYTES

__all__ = ["Limits", "Server", "serve"]

_GIVE_UP_SECONDS = 1.0

_log = logging.getLogger("qedasync.nbd")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server, and one client of it, may take.

    Attributes:
        connections: clients at once.
        waiting: clients beyond those, which wait until one leaves; more are hung up on.
        handshake_seconds: until a client has to have chosen an export.
        requests_in_flight: of one client; it is not read from while it has so many.
        bytes_in_flight: of one client's reads and writes, likewise.
        drain_seconds: what a close gives requests in flight.
    """

    connections: int = 1000
    waiting: int = 0
    handshake_seconds: float = 10.0
    requests_in_flight: int = 256
    bytes_in_flight: int = 8 << 20  # more only makes the buffers colder
    drain_seconds: float = 30.0


class Server:
    """Listens and serves; made by :func:`serve`.

    Attributes:
        exports: by name.
        counters: what it has done.
        scratch, pool: where what comes from clients lies, and what long requests need.
        tls: the context new clients get; may be replaced while it runs.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        *,
        limits: Limits,
        tls: ssl.SSLContext | None,
        tls_required: bool,
        allow: Callable[[Mapping[str, Any] | None], bool] | None,
    ) -> None:
        self.exports = dict(exports)
        self.limits = limits
        self.counters = Counters()
        self.scratch = bytearray(SCRATCH_BYTES)
        self.pool = BufferPool()
        self.tls = tls
        self._facts = _Facts(self.exports)
        self._tls_required = tls_required
        self._allow = allow
        self._connections: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # in the order of their coming
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._path: str | None = None
        self._closed = asyncio.Event()
        self._deserted = asyncio.Event()
        self._quiet = asyncio.Event()  # set while no request is in flight
        self._quiet.set()
        self._closing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ facts

    @property
    def addresses(self) -> list[Any]:
        """Where it listens: (host, port, ...) or a socket's path."""
        return [one.getsockname() for one in self._listener.sockets] if self._listener else []

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        for address in self.addresses:
            if isinstance(address, tuple):
                return int(address[1])
        raise RequestError("The server listens on no TCP port")

    def uri(self, name: str = "") -> str:
        """What a client on this host connects to."""
        scheme = "nbds" if self.tls is not None else "nbd"
        address = self.addresses[0]
        if isinstance(address, tuple):
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            return f"{scheme}://{host}:{address[1]}/{quote(name)}"
        return f"{scheme}+unix:///{quote(name)}?socket={quote(os.fsdecode(address))}"

    @property
    def connections(self) -> int:
        """Clients now."""
        return len(self._connections)

    # ---------------------------------------------------------- for connections

    def admit(self, connection: Connection) -> bool:
        """Whether one more client may stay; it is told to begin, now or when its turn comes."""
        if self._closing is None and len(self._connections) < self.limits.connections:
            self._let_in(connection)
            return True
        if self._closing is None and len(self._waiting) < self.limits.waiting:
            self._waiting[connection] = None
            return True
        self.counters.refused += 1
        return False

    def _let_in(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.counters.accepted += 1
        self.counters.connections = len(self._connections)
        connection.begin()

    def forget(self, connection: Connection) -> None:
        """A client has gone; who has waited longest comes in."""
        self._waiting.pop(connection, None)
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self.counters.connections = len(self._connections)
        if self._waiting and self._closing is None:
            first = next(iter(self._waiting))
            del self._waiting[first]
            self._let_in(first)
        if not self._connections:
            self._deserted.set()

    def new_handshake(self) -> ServerHandshake:
        """For a client that has just come."""
        return ServerHandshake(
            self._facts,
            self._find,
            tls_offered=self.tls is not None,
            tls_required=self._tls_required and self.tls is not None,
        )

    def _find(self, name: str) -> str | None:
        """An empty name means the only export there is."""
        if not name and "" not in self.exports and len(self.exports) == 1:
            return next(iter(self.exports))
        return name if name in self.exports else None

    def allows(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a client with this certificate may stay."""
        return self._allow is None or self._allow(certificate)

    def note_fault(self, connection: Connection, reason: str) -> None:
        """A client has broken the rules."""
        self.counters.failed += 1
        _log.info("a client was hung up on: %s", reason)

    def start_task(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run something of a connection's in a task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work, name=f"qedasync nbd: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def request_began(self, weight: int) -> None:
        """A request of so many bytes has begun that could not be done at once."""
        self.counters.in_flight += 1
        self.counters.bytes_in_flight += weight
        self._quiet.clear()

    def request_ended(self, weight: int) -> None:
        """And has ended."""
        self.counters.in_flight -= 1
        self.counters.bytes_in_flight -= weight
        if not self.counters.in_flight:
            self._quiet.set()

    # -------------------------------------------------------------- life cycle

    async def listen(
        self,
        host: str | None,
        port: int,
        path: str | os.PathLike[str] | None,
        sockets: Sequence[socket.socket],
    ) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()

        def factory() -> Connection:
            return Connection(self)

        try:
            if sockets:
                for one in sockets:
                    unix = one.family == socket.AF_UNIX
                    make = loop.create_unix_server if unix else loop.create_server
                    self._add(await make(factory, sock=one, backlog=1024))
            elif path is not None:
                self._path = os.fspath(path)
                self._add(await loop.create_unix_server(factory, self._path, backlog=1024))
            else:
                self._add(await loop.create_server(factory, host, port, backlog=1024))
        except OSError as error:
            raise StorageError(error.errno or 5, f"Cannot listen: {error}") from error

    def _add(self, listener: asyncio.Server) -> None:
        self._listener = listener

    async def wait_deserted(self) -> None:
        """Wait until there have been clients, and the last one has left."""
        await self._deserted.wait()

    async def wait_closed(self) -> None:
        """Wait until it has been closed."""
        await self._closed.wait()

    async def close(self) -> None:
        """Take no more clients and requests, answer those in flight, flush every disk.

        Cancellation: runs to the end.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="qedasync nbd: close")
        cancelled = False
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        self._closing.result()

    async def _close(self) -> None:
        try:
            if self._listener is not None:
                self._listener.close()
            for connection in list(self._waiting):
                connection.abort()
            for connection in list(self._connections):
                connection.end()
            await self._drain(self.limits.drain_seconds)
            await asyncio.sleep(0)
            for connection in list(self._connections):
                connection.abort()
            await asyncio.sleep(0)
            await self._drain(_GIVE_UP_SECONDS)  # what waited for a client to read
            for export in self.exports.values():
                if not export.readonly and not export.disk.closed:
                    await export.disk.flush()
        finally:
            if self._path is not None:
                # The loop may have removed it; an abstract name is no file's.
                with suppress(FileNotFoundError, ValueError):
                    os.unlink(self._path)
            self._closed.set()

    async def _drain(self, seconds: float) -> None:
        """Wait until all requests have ended, and the other tasks, but no longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if self._tasks:
                    await asyncio.wait(self._tasks)
                await self._quiet.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class _Facts(Mapping[str, ExportFacts]):
    """What a client may learn of the exports, as of when it asks: a disk may have grown."""

    def __init__(self, exports: Mapping[str, Export]) -> None:
        self._exports = exports

    def __getitem__(self, name: str) -> ExportFacts:
        return self._exports[name].facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._exports)

    def __len__(self) -> int:
        return len(self._exports)


def serve(
    exports: Mapping[str, Disk | Export],
    *,
    host: str | None = "127.0.0.1",
    port: int = 10809,
    path: str | os.PathLike[str] | None = None,
    sockets: Iterable[socket.socket] = (),
    tls: ssl.SSLContext | None = None,
    tls_required: bool = True,
    allow: Callable[[Mapping[str, Any] | None], bool] | None = None,
    limits: Limits | None = None,
) -> Opening[Server]:
    """Serve disks by NBD: ``await`` it, or use it in ``async with``.

    Args:
        exports: disks by the names that clients ask for. They stay the caller's: close them after
            the server. An empty name asked for means the only export there is.
        host, port: the TCP address to listen on; port 0 takes a free one. A host of None means
            every address of this machine.
        path: a Unix socket to listen on instead.
        sockets: sockets to listen on instead, bound already.
        tls: a context for the server's side. With one, whoever does not begin with STARTTLS
            learns nothing, unless ``tls_required`` is False.
        allow: is asked about the certificate of each client inside TLS.
        limits: what a client may take.

    Raises:
        StorageError: it cannot listen there.
    """
    made = {
        name: disk if isinstance(disk, Export) else Export(name, disk)
        for name, disk in exports.items()
    }

    async def start() -> Server:
        server = Server(
            made, limits=limits or Limits(), tls=tls, tls_required=tls_required, allow=allow
        )
        await server.listen(host, port, path, tuple(sockets))
        return server

    return Opening(start)
