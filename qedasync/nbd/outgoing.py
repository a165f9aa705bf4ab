"""What leaves for one client: short replies together, long ones in pieces.

Replies leave whole: between the parts of one, or of a piece of a long one, nothing else is written.
A long reply waits for a client that lags behind; its buffers are used again when they have left.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TypeAlias

from qedasync.nbd.buffers import BufferPool

__all__ = ["Outgoing", "Piece"]

Piece: TypeAlias = tuple[bytes, list[memoryview]]
"""Bytes of the protocol, and the data behind them, in buffers of the pool."""

_SOCKET_BYTES = 1 << 20  # that a Unix socket may hold, so that the client does not wait for us
_LENT_MOST = 16


class Outgoing:
    """The sending half of a connection.

    Attributes:
        transport: None before there is one, and after it is lost.
        lagging: whether the transport holds what the socket has not taken.
        parts: of short replies, for :meth:`flush`; the list stays the same one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: BufferPool) -> None:
        self.transport: asyncio.Transport | None = None
        self.lagging = False
        self.parts: list[bytes | bytearray] = []
        self._loop = loop
        self._pool = pool
        self._socket = -1  # that takes pages of a file as they are
        self._uses_again = True
        self._lent: list[memoryview] = []  # to the transport, until it has sent them
        self._turn = asyncio.Lock()  # held by the long reply whose pieces leave
        self._caught_up: asyncio.Future[None] | None = None

    def use(self, transport: asyncio.Transport, *, inside_tls: bool) -> None:
        """Send through this transport from now on.

        It writes at once and tells of everything that the socket does not take. What lies where
        inside TLS is not for us to know, so no buffer is used again there.
        """
        self.transport = transport
        self._uses_again = not inside_tls
        transport.set_write_buffer_limits(high=1, low=0)  # with 0, TLS would never catch up
        one = transport.get_extra_info("socket")
        if one is not None and one.family == socket.AF_UNIX:  # the host sees to TCP's itself
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            self._socket = -1 if inside_tls or not hasattr(os, "sendfile") else one.fileno()

    def lost(self) -> None:
        """The client has gone: nothing is sent, and nobody waits for that."""
        self.transport = None
        self.parts.clear()
        self._lent.clear()
        self.caught_up()

    def caught_up(self) -> None:
        """The socket has taken everything."""
        self.lagging = False
        if self._caught_up is not None and not self._caught_up.done():
            self._caught_up.set_result(None)

    def flush(self) -> None:
        """Send what is in :attr:`parts`."""
        if self.parts:
            self.write(b"".join(self.parts))
            self.parts.clear()

    def write(self, data: bytes | memoryview) -> None:
        """Send it, unless the client has gone: an earlier write may just have found that out."""
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def send(self, piece: Piece) -> None:
        """Send a piece of a long reply, or all of one, at once."""
        head, data = piece
        self.write(head)
        for view in data:
            self.write(view)
        self._lent += data
        if self.transport is None or len(self._lent) > _LENT_MOST:
            self._lent.clear()  # for the collector: who knows when they have left
        elif self._uses_again and not self.transport.get_write_buffer_size():
            for view in self._lent:
                self._pool.give(view)
            self._lent.clear()

    @property
    def takes_files(self) -> bool:
        """Whether :meth:`send_file` may be called now: nothing waits to be sent."""
        transport = self.transport
        return self._socket >= 0 and transport is not None and not transport.get_write_buffer_size()

    def send_file(self, head: bytes, fd: int, offset: int, length: int) -> None:
        """Send what comes before some bytes of a file, and then those.

        They are the file's own pages until the client has read them: it gets what is written there
        meanwhile, as if it had read a little later. What the socket does not take now is copied.

        Args:
            fd: a file whose range is in the page cache.
        """
        self.write(head)
        sent = 0
        if self.takes_files:
            with suppress(OSError):  # it is full; or it has gone, as the transport will find out
                sent = os.sendfile(self._socket, fd, offset, length)
        if sent < length:
            self._send_copy(fd, offset + sent, length - sent)

    def _send_copy(self, fd: int, offset: int, length: int) -> None:
        data = self._pool.take(length)
        try:
            done = os.preadv(fd, [data], offset)
        except OSError:  # amid a reply: nothing that the client would understand can follow
            if self.transport is not None:
                self.transport.abort()
            return
        data[done:] = bytes(length - done)  # past the end of the file
        self.send((b"", [data]))

    async def stream(self, pieces: AsyncGenerator[Piece, None]) -> None:
        """Send a long reply, piece by piece, when its turn comes. Raises what ``pieces`` raises."""
        async with aclosing(pieces):
            piece = await anext(pieces)  # at once, so that the disk has several replies' to find
            async with self._turn:
                await self._send_soon(piece)
                async for piece in pieces:
                    if self.transport is None:
                        break
                    await self._send_soon(piece)

    async def _send_soon(self, piece: Piece) -> None:
        if self.lagging:
            self._caught_up = self._loop.create_future()
            await self._caught_up
        self.send(piece)
