"""An export: a disk under a name, and what each command does to it.

Requests are validated here, in one place, and errors get their wire numbers here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qedasync import Disk, Extent, ExtentKind, QEDError
from qedasync.nbd.buffers import BufferPool
from qedasync.nbd.handshake import BASE_ALLOCATION, ExportFacts
from qedasync.nbd.outgoing import Piece
from qedasync.nbd.requests import Replies, Request
from qedasync.nbd.wire import (
    Command,
    CommandFlag,
    Error,
    StatusFlag,
    TransmissionFlag,
    to_wire,
)

__all__ = ["MAX_REQUEST", "SPARSE_FROM", "Export", "Refusal", "failure"]

MAX_REQUEST = 32 << 20
"""Bytes of a read or a write."""

SPARSE_FROM = 128 << 10
"""Bytes; a shorter read is not searched for holes."""
_PIECE = 256 << 10  # bytes of a long read that are sent while the next are read
_RENEW_EVERY = 64  # requests done at once; see Image.renew_soon
_UNIT = 32 << 10  # bytes of a long read that count as a request
_MAX_RUNS = 1024  # told by one block status
_STATUS_STEP = 256 << 20  # bytes looked at before counting runs again
_HOLE_MAX = 0xFFFF_F000  # bytes of one run, where 32 bits tell its length

PwriteSoon: TypeAlias = Callable[[memoryview, int, Callable[[QEDError | None], None]], bool]
"""``Image.pwrite_soon``."""

# Plain numbers: an inverted flag of an enum knows nothing of bits that the enum does not name.
_FLAGS: dict[int, int] = {
    Command.READ: int(CommandFlag.DF),
    Command.WRITE: int(CommandFlag.FUA),
    Command.DISC: 0,
    Command.FLUSH: 0,
    Command.TRIM: int(CommandFlag.FUA),
    Command.CACHE: 0,
    Command.WRITE_ZEROES: int(CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    Command.BLOCK_STATUS: int(CommandFlag.REQ_ONE),
}
_WRITES = {Command.WRITE, Command.TRIM, Command.WRITE_ZEROES}
# And quicker to compare with.
_READ, _WRITE, _FUA = int(Command.READ), int(Command.WRITE), int(CommandFlag.FUA)
_BOUNDED = frozenset({_READ, _WRITE, int(Command.CACHE)})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not carried out.

    Attributes:
        error: the wire's number.
        message: for clients that take a text.
    """

    error: Error
    message: str


class Export:
    """A disk as clients see it.

    Args:
        name: what clients ask for.
        disk: the disk; not owned.
        description: a text for clients that list exports.
        readonly: refuse writes even if the disk takes them.
    """

    def __init__(
        self, name: str, disk: Disk, *, description: str = "", readonly: bool = False
    ) -> None:
        self.name = name
        self.disk = disk
        self.description = description
        self.readonly = readonly or disk.readonly
        # What only some disks have: requests that need no coroutine.
        self.try_pread: Callable[[int, int], bytearray | None] | None
        self.try_pread = getattr(disk, "try_pread", None)
        self.try_pwrite: Callable[[memoryview, int], bool] | None
        self.try_pwrite = None if self.readonly else getattr(disk, "try_pwrite", None)
        self.pwrite_soon: PwriteSoon | None
        self.pwrite_soon = None if self.readonly else getattr(disk, "pwrite_soon", None)
        self._try_readinto: Callable[[memoryview, int], bool] | None
        self._try_readinto = getattr(disk, "try_readinto", None)
        self._try_locate: Callable[[int, int], tuple[int, int] | None] | None
        self._try_locate = getattr(disk, "try_locate", None)
        self._renew_soon: Callable[[], None] | None = getattr(disk, "renew_soon", None)
        self._done_inline = 0

    @property
    def facts(self) -> ExportFacts:
        """What a client may learn, as of now."""
        flags = (
            TransmissionFlag.HAS_FLAGS
            | TransmissionFlag.SEND_FLUSH
            | TransmissionFlag.SEND_FUA
            | TransmissionFlag.SEND_DF
            | TransmissionFlag.SEND_CACHE
            # One disk object is behind all connections, so a flush on one covers all.
            | TransmissionFlag.CAN_MULTI_CONN
        )
        if self.readonly:
            flags |= TransmissionFlag.READ_ONLY
        else:
            flags |= (
                TransmissionFlag.SEND_TRIM
                | TransmissionFlag.SEND_WRITE_ZEROES
                | TransmissionFlag.SEND_FAST_ZERO
            )
        return ExportFacts(self.disk.size, flags, self.description, (1, 4096, MAX_REQUEST))

    def note_inline(self, count: int) -> None:
        """So many requests have been done at once, in a callback of the loop."""
        self._done_inline += count
        if self._done_inline >= _RENEW_EVERY and self._renew_soon is not None:
            self._done_inline = 0
            self._renew_soon()

    def renewed_soon(self) -> bool:
        """Whether all that can be done at once has been, for now: more can in the next turn."""
        if self._renew_soon is None or not getattr(self.disk, "used_up", False):
            return False
        self._renew_soon()
        return True

    # -------------------------------------------------------------- validation

    def refusal(
        self, request: Request, replies: Replies, contexts: dict[str, int]
    ) -> Refusal | None:
        """Why the request cannot be carried out, or None."""
        if request.command not in _FLAGS:
            return Refusal(Error.EINVAL, f"unknown command {request.command}")
        allowed = _FLAGS[request.command]
        if replies.extended and request.command == _WRITE:
            allowed |= int(CommandFlag.PAYLOAD_LEN)
        if request.flags & ~allowed:
            return Refusal(Error.EINVAL, f"flags {request.flags:#x} do not belong to the command")
        if request.command in _WRITES and self.readonly:
            return Refusal(Error.EPERM, "the export is read-only")
        return self._bad_range(request, replies, contexts)

    def _bad_range(
        self, request: Request, replies: Replies, contexts: dict[str, int]
    ) -> Refusal | None:
        command, size = request.command, self.disk.size
        if command == Command.FLUSH:
            if request.offset or request.length:
                return Refusal(Error.EINVAL, "a flush has no range")
            return None
        if request.length > MAX_REQUEST and command in _BOUNDED:
            return Refusal(Error.EOVERFLOW, f"more than {MAX_REQUEST} bytes at once")
        if request.offset + request.length > size:
            number = Error.ENOSPC if command in _WRITES else Error.EINVAL
            return Refusal(number, f"past the end of the export, at {size} bytes")
        if command == Command.BLOCK_STATUS:
            if not contexts:
                return Refusal(Error.EINVAL, "no metadata context was chosen")
            if not request.length:
                return Refusal(Error.EINVAL, "a block status needs a length")
        if command == _READ and request.flags and not replies.structured:
            return Refusal(Error.EINVAL, "DF needs structured replies")
        return None

    # --------------------------------------------------------------- commands

    async def answer(
        self, request: Request, replies: Replies, contexts: dict[str, int]
    ) -> Sequence[bytes | bytearray]:
        """Carry a request out; the bytes of the reply. Raises nothing but cancellation."""
        refused = self.refusal(request, replies, contexts)
        if refused is not None:
            return replies.error(request, refused.error, refused.message)
        try:
            return await self._carry_out(request, replies, contexts)
        except (QEDError, MemoryError) as error:
            return failure(request, replies, error)

    async def _carry_out(
        self, request: Request, replies: Replies, contexts: dict[str, int]
    ) -> Sequence[bytes | bytearray]:
        command = request.command
        if command == _WRITE:
            await self.disk.pwrite(request.payload, request.offset)
        elif command == _READ:
            data = await self.disk.pread(request.length, request.offset)
            return [replies.head(request.cookie, request.offset, request.length), data]
        elif command == Command.BLOCK_STATUS:
            return await self._block_status(request, replies, contexts)
        elif command == Command.WRITE_ZEROES:
            await self._write_zeroes(request)
        elif command == Command.TRIM:
            await self.disk.discard(request.length, request.offset)
        elif command == Command.FLUSH:
            await self.disk.flush()
        # CACHE: the page cache is the host's affair; there is nothing to do, and no harm in asking.
        if request.flags & _FUA:
            await self.disk.flush()
        return [replies.done(request.cookie, request.offset)]

    async def _write_zeroes(self, request: Request) -> None:
        if not request.flags & CommandFlag.NO_HOLE:
            await self.disk.write_zeroes(request.length, request.offset)
            return
        pos, end = request.offset, request.offset + request.length
        zeroes = bytes(min(1 << 20, request.length))
        while pos < end:
            step = min(len(zeroes), end - pos)
            await self.disk.pwrite(zeroes[:step] if step < len(zeroes) else zeroes, pos)
            pos += step

    def try_locate(self, request: Request) -> tuple[int, int] | None:
        """A descriptor and the offset in it of all that a long read wants, to be sent at once."""
        if request.length > _PIECE or self._try_locate is None:
            return None
        try:
            place = self._try_locate(request.length, request.offset)
        except QEDError:  # whoever reads it again is told
            return None
        if place is not None:
            self.note_inline(request.length // _UNIT)
        return place

    def try_read_long(self, request: Request, replies: Replies, pool: BufferPool) -> Piece | None:
        """The whole reply to a long read, if one piece is enough and the disk need not wait."""
        offset, length = request.offset, request.length
        if length > _PIECE or self._try_readinto is None:
            return None
        data = pool.take(length)
        try:
            done = self._try_readinto(data, offset)
        except QEDError:  # whoever reads it again is told
            done = False
        if not done:
            pool.give(data)
            return None
        self.note_inline(length // _UNIT)
        return replies.head(request.cookie, offset, length), [data]

    def read_long(
        self, request: Request, replies: Replies, pool: BufferPool
    ) -> AsyncGenerator[Piece, None]:
        """A long read's reply in pieces, to be sent one after the other; buffers are the pool's.

        Only a structured reply can be cut, and can leave holes out.

        Raises:
            QEDError: what the disk met. An error may be the end of a reply that has begun.
        """
        return (self._read_pieces if replies.structured else self._read_whole)(
            request, replies, pool
        )

    async def _read_whole(
        self, request: Request, replies: Replies, pool: BufferPool
    ) -> AsyncGenerator[Piece, None]:
        whole = []
        for pos, length in _cut(request.offset, request.length):
            whole.append(pool.take(length))
            await self.disk.readinto(whole[-1], pos)
        yield replies.head(request.cookie, request.offset, request.length), whole

    async def _read_pieces(
        self, request: Request, replies: Replies, pool: BufferPool
    ) -> AsyncGenerator[Piece, None]:
        """The mapping is asked only where the image file does not have it all at hand."""
        pos, end = request.offset, request.offset + request.length
        while pos < end:
            length = min(_PIECE, end - pos)
            data = pool.take(length)
            if self._try_readinto is None or not self._try_readinto(data, pos):
                pool.give(data)
                break
            self.note_inline(length // _UNIT)
            yield replies.part(request, pos, length, last=pos + length == end), [data]
            pos += length
        else:
            return
        for run in _joined(await self.disk.block_status(pos, end - pos)):
            if run.zero:
                yield replies.hole(request, run.start, run.length, last=run.end == end), []
                continue
            for pos, length in _cut(run.start, run.length):
                data = pool.take(length)
                await self.disk.readinto(data, pos)
                yield replies.part(request, pos, length, last=pos + length == end), [data]

    async def _block_status(
        self, request: Request, replies: Replies, contexts: dict[str, int]
    ) -> Sequence[bytes | bytearray]:
        one = bool(request.flags & CommandFlag.REQ_ONE)
        runs = await self._runs(request.offset, request.length, 1 if one else _MAX_RUNS)
        limit = request.length if replies.extended else min(request.length, _HOLE_MAX)
        out: list[bytes | bytearray] = []
        chosen = list(contexts.items())
        for name, number in chosen:
            told = _told(runs, name, limit)
            last = number == chosen[-1][1]
            out += replies.status(request, number, told[:1] if one else told, last=last)
        return out

    async def _runs(self, pos: int, length: int, enough: int) -> list[Extent]:
        """The runs from ``pos`` on, perhaps not all, but more than ``enough`` if there are."""
        end = pos + length
        found: list[Extent] = []
        while pos < end and len(found) <= enough:
            found += await self.disk.block_status(pos, min(_STATUS_STEP, end - pos))
            pos = found[-1].end
        return found


def failure(request: Request, replies: Replies, error: QEDError | MemoryError) -> list[bytes]:
    """The reply for what went wrong."""
    if isinstance(error, MemoryError):
        return replies.error(request, Error.ENOMEM)
    return replies.error(request, to_wire(getattr(error, "errno", None)), str(error))


def _cut(pos: int, length: int) -> Iterator[tuple[int, int]]:
    """Pieces (position, length) of a range."""
    for start in range(pos, pos + length, _PIECE):
        yield start, min(_PIECE, pos + length - start)


def _joined(runs: Sequence[Extent]) -> list[Extent]:
    """The runs of zeroes and of data, whatever layer or place they come from."""
    joined: list[Extent] = []
    for run in runs:
        if joined and joined[-1].zero == run.zero:
            before = joined[-1]
            joined[-1] = Extent(
                before.start, before.length + run.length, ExtentKind.DATA, zero=run.zero
            )
        else:
            joined.append(run)
    return joined


def _told(runs: Sequence[Extent], context: str, limit: int) -> list[tuple[int, int]]:
    """(length, flags) in the words of a context, joined, ``limit`` bytes at most."""
    told: list[tuple[int, int]] = []
    meaning = _allocation if context == BASE_ALLOCATION else _depth
    left = limit
    for run in runs:
        length, flags = min(run.length, left), meaning(run)
        if told and told[-1][1] == flags:
            told[-1] = (told[-1][0] + length, flags)
        elif len(told) == _MAX_RUNS:
            break
        else:
            told.append((length, flags))
        left -= length
        if not left:
            break
    return told


def _allocation(run: Extent) -> int:
    return StatusFlag.HOLE | StatusFlag.ZERO if run.zero else 0


def _depth(run: Extent) -> int:
    """0 where nobody has it, 1 for the disk itself, 2 for its backing file, ..."""
    return 0 if run.kind is ExtentKind.UNALLOCATED else run.depth + 1
