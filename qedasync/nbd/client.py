"""The client: an export of a server somewhere as a disk to await.

Here a disk's calls become requests of what the server takes: whole blocks, not too many bytes at a
time. What becomes of them when the connection is lost is in :mod:`.steady`.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Self

from qedasync import Extent, ExtentKind, Opening
from qedasync.errors import ImageClosed, ReadOnly, RequestError, StorageError
from qedasync.nbd.client_handshake import Listed, ask_for_exports, open_link
from qedasync.nbd.handshake import ALLOCATION_DEPTH, BASE_ALLOCATION, ExportFacts
from qedasync.nbd.link import Link
from qedasync.nbd.steady import SteadyLink
from qedasync.nbd.tls import client_context
from qedasync.nbd.uri import Address, parse_uri
from qedasync.nbd.wire import Command, CommandFlag, StatusFlag, TransmissionFlag

__all__ = ["Client", "connect", "list_exports"]

Buffer = bytes | bytearray | memoryview

_STATUS_LENGTH = 1 << 30  # bytes asked about at once
_TIMEOUT = 30.0  # seconds for connecting and the handshake


class Client:
    """A connected export; made by :func:`connect`, an async context manager, a ``Disk``.

    Cancellation: at once; whether the server carries a cancelled write out is unknown then.
    """

    def __init__(self, address: Address, link: SteadyLink) -> None:
        self._address = address
        self._link = link
        self._edges = asyncio.Lock()  # writes that are not made of whole blocks
        self._closed = False

    @property
    def _facts(self) -> ExportFacts:
        return self._link.facts

    # ------------------------------------------------------------------ facts

    @property
    def path(self) -> str:
        """The URI."""
        return str(self._address)

    @property
    def size(self) -> int:
        """The export's bytes, as the server said when it was asked last."""
        return self._facts.size

    @property
    def readonly(self) -> bool:
        """Whether the export refuses writes."""
        return bool(self._facts.flags & TransmissionFlag.READ_ONLY)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._closed

    @property
    def flags(self) -> TransmissionFlag:
        """What the export can do."""
        return self._facts.flags

    @property
    def contexts(self) -> tuple[str, ...]:
        """The metadata contexts agreed on."""
        link = self._link.link
        return tuple(link.contexts.values()) if link is not None else ()

    @property
    def description(self) -> str:
        """What the server says of the export."""
        return self._facts.description

    # ------------------------------------------------------------------ reads

    async def pread(self, length: int, offset: int) -> bytearray:
        """Exactly ``length`` bytes from ``offset`` on.

        Raises:
            RequestError: the range is not inside the export.
            StorageError: the server could not, or is gone.
        """
        self._check(offset, length)
        start, end = self._blocks(offset, length)
        data = bytearray(end - start)
        await self._each(Command.READ, start, end, lambda at, n: (memoryview(data), at - start))
        return (
            data
            if (start, end) == (offset, offset + length)
            else data[offset - start : offset - start + length]
        )

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer``; answers its length."""
        return await self.preadv((buffer,), offset)

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        """Fill ``buffers``, one after the other; answers how many bytes."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        length = sum(map(len, views))
        data = memoryview(await self.pread(length, offset))
        for view in views:
            view[:] = data[: len(view)]
            data = data[len(view) :]
        return length

    # ----------------------------------------------------------------- writes

    async def pwrite(self, data: Buffer, offset: int) -> int:
        """Write all of ``data``; answers its length."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self._check(offset, len(view), write=True)
        least = self._facts.block_sizes[0]
        if offset % least or len(view) % least:
            await self._write_edges(view, offset)
        else:
            await self._write(view, offset)
        return len(view)

    async def pwritev(self, buffers: Iterable[Buffer], offset: int) -> int:
        """Write ``buffers``, one after the other; answers how many bytes."""
        return await self.pwrite(b"".join(buffers), offset)

    async def _write(self, view: memoryview, offset: int) -> None:
        await self._each(
            Command.WRITE, offset, offset + len(view), lambda at, n: (view, at - offset)
        )

    async def _write_edges(self, view: memoryview, offset: int) -> None:
        """Read the blocks at the ends, put the data in, write whole blocks."""
        start, end = self._blocks(offset, len(view))
        async with self._edges:
            whole = await self.pread(end - start, start)
            whole[offset - start : offset - start + len(view)] = view
            await self._write(memoryview(whole), start)

    async def write_zeroes(self, length: int, offset: int, *, keep: bool = False) -> None:
        """Make the bytes read as zeroes.

        Args:
            keep: the server is to keep the place for them.
        """
        self._check(offset, length, write=True)
        least = self._facts.block_sizes[0]
        if not self.flags & TransmissionFlag.SEND_WRITE_ZEROES or offset % least or length % least:
            for piece in range(0, length, 1 << 20):
                await self.pwrite(bytes(min(1 << 20, length - piece)), offset + piece)
            return
        flags = CommandFlag.NO_HOLE if keep else CommandFlag(0)
        await self._each(Command.WRITE_ZEROES, offset, offset + length, None, flags)

    async def discard(self, length: int, offset: int) -> None:
        """The bytes are not needed: whole blocks of them may read as anything from then on."""
        self._check(offset, length, write=True)
        if self.flags & TransmissionFlag.SEND_TRIM:
            least = self._facts.block_sizes[0]
            start, end = -(-offset // least) * least, (offset + length) // least * least
            if start < end:
                await self._each(Command.TRIM, start, end, None)

    zero = write_zeroes
    trim = discard

    async def flush(self) -> None:
        """Make every write that returned before this call survive a power loss of the server.

        Raises:
            StorageError: the server could not; or the connection was lost meanwhile and made again,
                and what the server had not yet made durable may be gone: write it again.
        """
        self._check_open()
        if self.flags & TransmissionFlag.SEND_FLUSH:
            await self._link.flush()

    async def cache(self, length: int, offset: int) -> None:
        """Ask the server to have the bytes at hand."""
        self._check(offset, length)
        if self.flags & TransmissionFlag.SEND_CACHE:
            await self._each(Command.CACHE, *self._blocks(offset, length), None)

    # ------------------------------------------------------------------- size

    async def refresh(self) -> int:
        """Ask the server anew what the export is; answers its bytes now.

        An NBD server tells a size when it is connected to, and never again. So this changes over to
        a new connection, once what is in flight has been answered; what was written is durable.

        Raises:
            StorageError: the server takes no second connection; the client goes on with the first.
        """
        self._check_open()
        await self._link.refresh()
        return self.size

    async def truncate(self, size: int) -> None:
        """An export has the size that its server gives it: see whether it is so long by now.

        Raises:
            RequestError: it is not, or it is longer than asked for and was so before.
        """
        self._check_open()
        if size > self.size and await self.refresh() >= size:
            return
        if size != self.size:
            raise RequestError(
                "An NBD export cannot be resized by its client",
                size=self.size,
                length=size,
                errno=errno.ENOTSUP,
            )

    # ---------------------------------------------------------------- mapping

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """Data, zeroes and holes; everything is data if the server does not tell."""
        self._check(offset, length)
        runs: list[Extent] = []
        pos, end = offset, offset + length
        while pos < end:
            told = await self._status(pos, end)
            for size, flags in told:
                take = min(size, end - pos)
                if take <= 0:
                    break
                runs.append(_run(pos, take, flags))
                pos += take
        return _merged(runs)

    async def extents(self) -> AsyncIterator[Extent]:
        """The runs of the whole export."""
        pos = 0
        while pos < self.size:
            runs = await self.block_status(pos, min(_STATUS_LENGTH, self.size - pos))
            for run in runs:
                yield run
            pos = runs[-1].end

    async def _status(self, pos: int, end: int) -> list[tuple[int, int]]:
        if BASE_ALLOCATION not in self.contexts:
            return [(end - pos, 0)]
        least = self._facts.block_sizes[0]
        start = pos - pos % least
        stop = min(-(-min(end, start + _STATUS_LENGTH) // least) * least, self.size)
        answer = await self._link.request(Command.BLOCK_STATUS, 0, start, stop - start)
        told = answer.get(BASE_ALLOCATION) or [(stop - start, 0)]
        (first, flags), *rest = told
        if first <= pos - start:
            raise StorageError(errno.EINVAL, "The server's block status makes no progress")
        return [(first - (pos - start), flags), *rest]

    # ------------------------------------------------------------- life cycle

    async def close(self) -> None:
        """Say good-bye and hang up; requests in flight fail. Idempotent.

        Cancellation: leaves the connection closed.
        """
        self._closed = True
        await self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<qedasync.nbd.Client {self.path!r} {self.size} bytes>"

    # ---------------------------------------------------------------- helpers

    async def _each(
        self,
        command: Command,
        start: int,
        end: int,
        data: Callable[[int, int], tuple[memoryview, int]] | None,
        flags: int = 0,
    ) -> None:
        """One request, or several at once where the server takes no more at a time."""
        most = self._facts.block_sizes[2]
        pieces = []
        for at in range(start, end, most):
            n = min(most, end - at)
            view = None
            if data is not None:
                whole, skip = data(at, n)
                view = whole[skip : skip + n]
            payload = view if command == Command.WRITE and view is not None else b""
            buffer = view if command == Command.READ else None
            pieces.append(self._link.request(command, flags, at, n, payload, buffer))
        if len(pieces) == 1:
            await pieces[0]
        elif pieces:
            await _all(pieces)

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """The range in whole blocks of what the server takes."""
        least = self._facts.block_sizes[0]
        if not length:
            return offset, offset
        return offset - offset % least, min(-(-(offset + length) // least) * least, self.size)

    def _check(self, offset: int, length: int, *, write: bool = False) -> None:
        self._check_open()
        if offset < 0 or length < 0 or offset + length > self.size:
            raise RequestError(
                f"{length} bytes at offset {offset} are not inside the export of {self.size} bytes",
                offset=offset,
                length=length,
                size=self.size,
            )
        if write and self.readonly:
            raise ReadOnly(f"{self._address} is read-only")

    def _check_open(self) -> None:
        if self._closed:
            raise ImageClosed("The client is closed")


async def _all(requests: Sequence[Coroutine[Any, Any, object]]) -> None:
    """Wait for all of them; the first failure leaves as itself, and ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(request)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _run(pos: int, length: int, flags: int) -> Extent:
    zero = bool(flags & StatusFlag.ZERO)
    kind = ExtentKind.UNALLOCATED if zero and flags & StatusFlag.HOLE else ExtentKind.DATA
    return Extent(pos, length, kind, zero=zero)


def _merged(runs: list[Extent]) -> list[Extent]:
    merged: list[Extent] = []
    for run in runs:
        if merged and run.continues(merged[-1]):
            last = merged.pop()
            run = Extent(last.start, last.length + run.length, run.kind, zero=run.zero)
        merged.append(run)
    return merged


def connect(
    uri: str,
    *,
    tls: ssl.SSLContext | None = None,
    reconnect: float = 0.0,
    timeout: float = _TIMEOUT,
) -> Opening[Client]:
    """Connect to an export: ``await`` it, or use it in ``async with``.

    Args:
        uri: ``nbd://host[:port]/export``, ``nbds://…`` (TLS), ``nbd+unix:///export?socket=PATH``,
            ``nbds+unix://…``, with libnbd's parameters ``tls-certificates``, ``tls-verify-peer``,
            ``tls-hostname``.
        tls: a context for the client's side; by default what the URI says.
        reconnect: seconds to go on trying after a lost connection; what is in flight waits, and is
            sent again, up to five times. 0 fails it, and everything after it.
        timeout: seconds for connecting and the handshake.

    Raises:
        RequestError: it is no NBD URI. Raised by the call itself.
        StorageError: there is no server, or it does not give us the export.
    """
    address = parse_uri(uri)
    tls = tls or _context(address)
    contexts = (BASE_ALLOCATION, ALLOCATION_DEPTH)

    async def link() -> Link:
        return await open_link(address, tls, contexts, timeout)

    async def make() -> Client:
        return Client(address, SteadyLink(await link(), link, reconnect, str(address)))

    return Opening(make)


async def list_exports(uri: str, *, tls: ssl.SSLContext | None = None) -> list[Listed]:
    """What a server has, in its order; the export that the URI names does not matter.

    Args and raises: as for :func:`connect`, with its usual timeout.
    """
    address = parse_uri(uri)
    return await ask_for_exports(address, tls or _context(address), _TIMEOUT)


def _context(address: Address) -> ssl.SSLContext | None:
    """TLS as the URI says."""
    if not address.tls:
        return None
    return client_context(address.certificates or None, verify=address.verify)
