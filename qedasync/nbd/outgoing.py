"""What leaves for one client: short replies together, long ones in pieces.

Replies leave whole: between the parts of one, or of a piece of a long one, nothing else is written.
A long reply waits for a client that lags behind; its buffers are used again when they have left.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
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
