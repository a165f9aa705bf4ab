"""Requests to one export over one connection after the other.

What is in flight when a connection is lost waits for the next one, if the policy has it so, and is
sent again: every NBD command may be carried out twice. What a lost connection has taken with it is
known here alone: writes that were acknowledged and that no flush had covered. The server may have
died with them in its memory, so the next flush fails, once, instead of promising what it cannot.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

from qedasync.errors import ImageClosed, StorageError
from qedasync.nbd.link import Link, LinkLost
from qedasync.nbd.wire import Command, TransmissionFlag

__all__ = ["SteadyLink"]

Buffer = bytes | bytearray | memoryview

_IN_FLIGHT = 256
_LOSSES = 5  # connections that one request may lose: it may be what the server dies of
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0  # seconds between tries to reconnect
_WRITES = {Command.WRITE, Command.WRITE_ZEROES}


class SteadyLink:
    """A connection that is made again when it is lost.

    Args:
        link: the first one.
        connect: makes the next.
        patience: seconds to go on trying; with 0 a lost connection stays lost.
        name: of the export, for messages.

    Attributes:
        link: the connection now; it may be lost, None after :meth:`close`.
        facts: what the server said last of the export.
    """

    def __init__(
        self, link: Link, connect: Callable[[], Awaitable[Link]], patience: float, name: str
    ) -> None:
        self.link: Link | None = link
        self.facts = link.facts
        self._connect = connect
        self._patience = patience
        self._name = name
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._refreshing = asyncio.Lock()
        self._relinking: asyncio.Task[Link] | None = None
        self._closed = False
        self._written = self._flushed = 0  # writes acknowledged; those that a flush covers
        self._unsure = False  # writes were acknowledged that the server may have lost

    async def request(
        self,
        command: Command,
        flags: int,
        offset: int,
        length: int,
        payload: Buffer = b"",
        buffer: memoryview | None = None,
    ) -> dict[str, list[tuple[int, int]]]:
        """Send a request and wait for its reply; the runs, for a block status.

        Raises:
            StorageError: the server could not do it, or is gone.

        Cancellation: at once; the reply is passed over when it comes.
        """
        losses = 0
        async with self._slots:
            while True:
                link = await self._connected()
                try:
                    told = await link.request(command, flags, offset, length, payload, buffer)
                except LinkLost as error:
                    losses += 1
                    if self._closed or not self._patience or losses == _LOSSES:
                        what = f"The connection to {self._name} was lost: {error}"
                        raise StorageError(errno.EIO, what, offset=offset, length=length) from error
                else:
                    if command in _WRITES:
                        self._written += 1
                    return told

    async def flush(self) -> None:
        """Make what was acknowledged durable.

        Raises:
            StorageError: the server could not, or a connection was lost that took acknowledged
                writes with it; the next flush is about the writes after this one.
        """
        before = self._written
        await self.request(Command.FLUSH, 0, 0, 0)
        if self._unsure:
            self._unsure = False
            raise StorageError(
                errno.EIO,
                f"The connection to {self._name} was lost with writes that no flush had covered;"
                " the server may have lost them",
            )
        self._flushed = max(self._flushed, before)

    async def refresh(self) -> None:
        """Change over to a new connection, with nothing in flight: it has the facts as of now.

        Raises:
            StorageError: the server does not take another connection; the old one stays in use.

        Cancellation: the old connection stays in use.
        """
        async with self._refreshing, AsyncExitStack() as idle:
            for _ in range(_IN_FLIGHT):
                await idle.enter_async_context(self._slots)
            old = await self._connected()
            with suppress(LinkLost):
                if old.facts.flags & TransmissionFlag.SEND_FLUSH and self._written > self._flushed:
                    await old.request(Command.FLUSH, 0, 0, 0, b"", None)
                    self._flushed = self._written
            self._take(await self._connect())
            await old.close()

    async def close(self) -> None:
        """Say good-bye and hang up; requests in flight fail. Idempotent."""
        self._closed = True
        if self._relinking is not None:
            self._relinking.cancel()
            await asyncio.wait([self._relinking])
        link, self.link = self.link, None
        if link is not None:
            await link.close()

    # ------------------------------------------------------------- connecting

    async def _connected(self) -> Link:
        if self._closed:
            raise ImageClosed("The client is closed")
        if self.link is not None and not self.link.lost:
            return self.link
        if not self._patience:
            raise StorageError(errno.ENOTCONN, f"The connection to {self._name} was lost")
        if self._relinking is None:
            self._relinking = asyncio.create_task(self._try_again(), name="qedasync nbd: reconnect")
            self._relinking.add_done_callback(_look_at)
        return await asyncio.shield(self._relinking)

    async def _try_again(self) -> Link:
        """Connect until it works or the time is up."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        wait = _FIRST_WAIT
        try:
            while True:
                try:
                    link = await self._connect()
                except StorageError:
                    if loop.time() + wait > until:
                        raise
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                    continue
                if link.facts.size < self.facts.size:
                    await link.close()
                    raise StorageError(errno.EIO, f"{self._name} has become smaller")
                self._take(link)
                return link
        finally:
            self._relinking = None

    def _take(self, link: Link) -> None:
        """From here on requests use this connection."""
        self._unsure = self._unsure or self._written > self._flushed
        self._flushed = self._written
        self.link, self.facts = link, link.facts


def _look_at(task: asyncio.Task[Link]) -> None:
    """Whoever waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()
