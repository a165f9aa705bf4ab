"""The engine of one open image: its parts put together, and the paths that must be fast.

A read whose slice is cached and whose bytes are in the page cache finishes in
:meth:`Engine.try_read` without suspending: no lock, no task, no thread, one system call. Because
such reads never give the loop a turn, they are counted (:mod:`qedasync.engine.budget`), and a task
that has used the budget up pauses. The same goes for small writes to clusters at hand.

Everything else enters through the gate (:mod:`qedasync.engine.gate`), so that a close or a repair
can wait until nobody is inside.
"""

from __future__ import annotations

import asyncio
import errno
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from qedasync.engine.alloc_queue import AllocatingWrite, AllocQueue
from qedasync.engine.allocator import Allocator
from qedasync.engine.budget import SMALL, Budget
from qedasync.engine.bulk import Bulk
from qedasync.engine.commit import Committer
from qedasync.engine.extents import Extent
from qedasync.engine.gate import Gate
from qedasync.engine.header_file import HeaderFile
from qedasync.engine.inline import (
    TryView,
    bind_below,
    bind_copy,
    bind_read,
    bind_start,
    bind_unmapped,
    bind_view,
    bind_write,
)
from qedasync.engine.l2_cache import L2Cache
from qedasync.engine.metadata import load_metadata
from qedasync.engine.need_check import Clock, LoopClock, NeedCheck
from qedasync.engine.request import Reader
from qedasync.engine.resize import Grower
from qedasync.engine.source import Source
from qedasync.engine.stats import Stats
from qedasync.engine.status import Mapper, joined_batches
from qedasync.engine.tables import Tables
from qedasync.engine.tasks import TaskOwner
from qedasync.engine.views import FilePages, Viewer
from qedasync.engine.write import Writer
from qedasync.errors import ImageClosed, ImageFailed, QEDError, ReadOnly, RequestError, StateError
from qedasync.format.cluster import ClusterKind, Lookup
from qedasync.format.geometry import Geometry
from qedasync.format.header import (
    AUTOCLEAR_FEATURE_MASK,
    Header,
    usable_file_size,
)
from qedasync.storage.base import ReadBuffers, Storage, WriteBuffers
from qedasync.storage.buffers import new_buffer
from qedasync.storage.host_file import lend
from qedasync.waiting import Ending

__all__ = ["Engine", "EngineOptions", "Watcher"]

Watcher = Callable[[int, int], None]
"""Is told the position and length of what has been written."""


class EngineOptions(NamedTuple):
    """How an image is to be driven.

    Attributes:
        writable: whether anything may be written at all.
        write_through: every write is durable before it returns.
        flushes: False turns every flush into nothing, ordering included.
        l2_cache_bytes: budget for slices of L2 tables.
        need_check_timeout: quiet seconds before NEED_CHECK is cleared.
        clock: what time it is.
    """

    writable: bool = False
    write_through: bool = False
    flushes: bool = True
    l2_cache_bytes: int = 32 << 20
    need_check_timeout: float = 5.0
    clock: Clock | None = None


class Engine:
    """One open image; made by :meth:`open`, belongs to the loop it was opened on.

    Attributes:
        storage, geometry, header_file, tables, allocator, queue, need_check, reader, mapper: the
            parts; they are for the modules just above (check, backing, chain), not for users.
        job: held by whoever works on the whole image: a repair, a rebase, a commit.
        image_size: guest bytes.
        backing: what unallocated areas come from, or None.
        backing_name: the backing file's name as the image records it, or None.
        failure: why writes refuse, or None.
    """

    def __init__(
        self,
        storage: Storage,
        header: Header,
        geometry: Geometry,
        l1: array[int],
        options: EngineOptions,
        path: str,
    ) -> None:
        self.storage = storage
        self.geometry = geometry
        self.options = options
        self.path = path
        self.stats = Stats()
        self.failure: BaseException | None = None
        self.closed = False
        self.backing: Source | None = None
        self.backing_name: str | None = None
        self.loop = asyncio.get_running_loop()
        self.tasks = TaskOwner("qedasync")
        self.gate = Gate()
        self.header_file = HeaderFile(storage, header)
        end_of_file = usable_file_size(storage.size, geometry.cluster_size)
        self.allocator = Allocator(geometry, end_of_file)
        self.cache = L2Cache(options.l2_cache_bytes)
        self.tables = Tables(
            storage,
            geometry,
            l1,
            self.cache,
            self.allocator,
            self.tasks,
            self.stats,
            guard=options.writable,
        )
        self.queue = AllocQueue(self._commit, self._queue_idle, self.tasks)
        self.need_check = NeedCheck(
            self.header_file,
            self.sync,
            self.queue.turn,
            self.tasks,
            options.clock or LoopClock(),
            options.need_check_timeout,
            self._in_background,
        )
        self._committer = Committer(
            storage,
            self.tables,
            self.allocator,
            self.need_check,
            self.stats,
            self.sync,
            self.fail,
        )
        self.reader = Reader(storage, self.tables)
        self._writer = Writer(storage, self.tables, self.queue)
        self._grower = Grower(storage, self.tables, self.queue, self.header_file)
        self.mapper = Mapper(self.tables, path)
        self.job = asyncio.Lock()
        self._resizing = asyncio.Lock()
        self._door = asyncio.Lock()  # who may shut the gate
        self._ending = Ending(self._close)
        self._background_error: QEDError | None = None
        self._watcher: Watcher | None = None
        self._set_size(header.image_size)
        self.budget = Budget(self.loop)
        self.may_write_inline = options.writable
        self._try_read_into = storage.try_read_into
        self._resident = storage if isinstance(storage, Resident) else None
        self._viewer: Viewer | None = None
        young = self.cache.young
        self._try_unmapped = bind_unmapped(self, self.tables)
        self.try_below = bind_below(self, geometry, self.tables, storage)
        self.try_read = bind_read(
            self, geometry, young, storage, self.budget, self.try_below, self._try_unmapped
        )
        self._start_read = bind_start(geometry, young, storage)
        self.try_view: TryView = _view_nothing
        self._write_inline = bind_write(self, geometry, young, storage, self.budget, self.stats)
        # What would return before it is durable is not offered to who cannot wait for that.
        self.try_write = _write_nothing if options.write_through else self._write_inline

    @classmethod
    async def open(cls, storage: Storage, options: EngineOptions, path: str = "") -> Engine:
        """Open an image that lies in ``storage``. Without its backing file: see :meth:`attach`.

        Writes only to clear unknown autoclear bits. Does not look at NEED_CHECK.

        Raises:
            FormatError: not a usable image.
            StorageError: it cannot be read, or the bits not be cleared.
        """
        engine = await cls.load(storage, options, path)
        await engine.clear_autoclear()
        return engine

    @classmethod
    async def load(cls, storage: Storage, options: EngineOptions, path: str = "") -> Engine:
        """The first half of :meth:`open`, which writes nothing; see :meth:`clear_autoclear`.

        Reads the header and the part of L1 in use, whatever the image's size.
        """
        found = await load_metadata(storage)
        engine = cls(storage, found.header, found.geometry, found.l1, options, path)
        engine.backing_name = found.backing_name
        return engine

    async def clear_autoclear(self) -> None:
        """Clear autoclear bits that nobody here knows, if the image is to be written.

        Raises:
            StorageError: the header could not be written.
        """
        header = self.header
        if self.options.writable and header.unknown_autoclear:
            known = header.autoclear_features & AUTOCLEAR_FEATURE_MASK
            await self.header_file.update(replace(header, autoclear_features=known))
            await self.storage.flush()

    def attach(self, backing: Source | None) -> None:
        """Set what unallocated areas come from; owned from here on."""
        self.backing = backing
        self.queue.fill_bytes = 0 if backing is None else 2 * self.geometry.cluster_size
        for part in (self.reader, self._writer, self._grower, self.mapper, self._committer):
            part.backing = backing
        if self._viewer is not None:
            self._viewer.backing = backing

    @property
    def header(self) -> Header:
        """The header as it is on disk."""
        return self.header_file.header

    @property
    def inline_reads(self) -> int:
        """Reads that finished without suspending, since the image was opened."""
        return self.budget.reads

    def current_stats(self) -> Stats:
        """The counters as of now; a copy."""
        return replace(
            self.stats,
            inline_reads=self.inline_reads,
            pauses=self.budget.pauses,
        )

    # ------------------------------------------------------------------ reads

    def try_read_into(self, buffers: ReadBuffers, pos: int, length: int) -> bool:
        """Like :meth:`try_read`, into ``buffers``, whose content is undefined after False."""
        budget = self.budget
        if budget.reads < budget.limit and 0 <= pos <= self.image_size - length and length > 0:
            if self.try_fill(buffers, pos, length):
                budget.reads += 1
                if length > SMALL:
                    budget.limit -= length // SMALL
                return True
        return False

    def try_fill(self, buffers: ReadBuffers, pos: int, length: int) -> bool:
        """The same for an image above, inside this one: the request is counted there."""
        offset = self.tables.find_mapped(pos, length)
        if offset:
            return self._try_read_into(buffers, offset)
        return self._try_unmapped(buffers, pos, length)

    def try_read_data(self, buffer: memoryview, pos: int) -> bool:
        """Fill ``buffer`` from any number of clusters, if all of them are mapped and at hand.

        Any argument is safe, as for :attr:`try_read`. Never suspends.
        """
        budget, length = self.budget, len(buffer)
        if budget.reads >= budget.limit or not 0 <= pos <= self.image_size - length:
            return False
        done = 0
        while done < length:
            found = self.tables.lookup(pos + done, length - done)
            if type(found) is not Lookup or found.kind is not ClusterKind.FOUND:
                return False
            if not self._try_read_into((buffer[done : done + found.length],), found.offset):
                return False
            done += found.length
        budget.charge(length)
        return True

    def try_locate(self, length: int, pos: int) -> tuple[int, int] | None:
        """A descriptor and an offset in it where the bytes are, if they are one run of the file and
        in the page cache; good until the loop's next turn. Counts as a read. Any argument is safe.

        Raises:
            CorruptTable: the entry cannot be used.
        """
        budget, file = self.budget, self._resident
        if file is None or budget.reads >= budget.limit:
            return None
        if length <= 0 or not 0 <= pos <= self.image_size - length:
            return None
        found = self.tables.lookup(pos, length)
        if type(found) is not Lookup or found.kind is not ClusterKind.FOUND:
            return None
        if found.length < length or not file.resident(found.offset, length):
            return None
        budget.charge(length)
        return file.fileno(), found.offset

    async def read(self, length: int, pos: int) -> bytearray:
        """``length`` bytes inside the image, from ``pos`` on: what :meth:`try_read` did not give.

        Raises and cancellation: as :meth:`read_into`.
        """
        if self.budget.used_up:
            await self._pause_reading()
            data = self.try_read(length, pos)
            if data is not None:
                return data
        if not self.gate.shut:
            self.check_loop()
            started = self._start_read(length, pos)
            if started is not None:
                self.gate.inside += 1
                try:
                    data = await started
                finally:
                    self.gate.leave()
                if data is not None:
                    self._count_read(length)
                    return data
        data = new_buffer(length)
        await self.read_into([data], pos, length)
        return data

    async def read_into(self, buffers: ReadBuffers, pos: int, length: int) -> None:
        """Fill ``buffers``, ``length`` bytes in all and inside the image, from ``pos`` on.

        Raises:
            CorruptTable, StorageError, BackingError: what the run met.
            ImageClosed: the image is closed.

        Cancellation: when nothing touches the buffers any more.
        """
        await self._enter()
        try:
            await self.reader.read_into(buffers, pos, length)
        finally:
            self.gate.leave()
        self._count_read(length)

    def _count_read(self, length: int) -> None:
        self.budget.charge(length)
        self.stats.reads += 1
        self.stats.read_bytes += length

    def lend(self, pages: FilePages) -> None:
        """Give views of ``pages``, a map of the storage's file, and read from it, from now on.

        Read-only images.
        """
        self._viewer = Viewer(self.storage, self.tables, pages)
        self._viewer.backing = self.backing
        geometry, young, budget = self.geometry, self.cache.young, self.budget
        self.try_view = bind_view(self, geometry, young, pages, budget)
        self.try_read = bind_copy(self, geometry, young, pages, budget, self.try_read)

    async def view(self, length: int, pos: int) -> memoryview:
        """``length`` bytes inside the image that :attr:`try_view` did not give; perhaps a copy.

        Raises and cancellation: as :meth:`read_into`.
        """
        if self.budget.used_up:
            await self._pause_reading()
            view = self.try_view(length, pos)
            if view is not None:
                return view
        view = await self._find_view(length, pos)
        if view is None:
            view = memoryview(await self.read(length, pos)).toreadonly()
        return view

    async def _pause_reading(self) -> None:
        await self.budget.pause()
        if self._viewer is not None:
            self._viewer.file.refresh()

    async def _find_view(self, length: int, pos: int) -> memoryview | None:
        if self._viewer is None:
            return None
        await self._enter()
        try:
            view = await self._viewer.find(length, pos)
        finally:
            self.gate.leave()
        if view is not None:
            self.budget.charge(0)
            self.stats.reads += 1
            self.stats.read_bytes += length
        return view

    # ----------------------------------------------------------------- writes

    async def write(self, buffers: WriteBuffers, pos: int, length: int) -> None:
        """Write ``buffers``, ``length`` bytes in all and inside the image, at ``pos``.

        Raises:
            StorageError, CorruptTable, BackingError: a part failed; each cluster is old or new.
            ReadOnly, ImageFailed, ImageClosed: the image takes no writes.

        Cancellation: what has begun runs to its end first.
        """
        if len(buffers) == 1 and self.tables.is_free(pos, length) and not self.gate.shut:
            await self._write_queued(buffers, pos, length)
            return
        again = self.options.write_through
        if self.budget.used_up:
            await self.budget.pause()
            again = True
        if again and len(buffers) == 1 and self._write_inline(buffers[0], pos, length):
            if self.options.write_through:
                await self._sync_inside()
            return
        await self._enter_to_write()
        try:
            offset = self.tables.find_mapped(pos, length)
            if offset:
                await self.storage.write(buffers, offset)
            else:
                await self._writer.write(buffers, pos, length)
            if self.options.write_through:
                await self.sync()
        finally:
            self._wrote(pos, length)
            self.gate.leave()
        self.budget.charge(length)
        self.stats.writes += 1
        self.stats.write_bytes += length

    async def _write_queued(self, buffers: WriteBuffers, pos: int, length: int) -> None:
        """As :meth:`write`, into one cluster that holds no data, with the gate open.

        Waits in any case, for its group, so it need not pause, nor be charged for.
        """
        self.check_writable()
        self._check_closed()
        self.check_loop()
        self.gate.inside += 1
        try:
            await self.queue.write(pos, length, buffers)
            if self.options.write_through:
                await self.sync()
        finally:
            self._wrote(pos, length)
            self.gate.leave()
        self.stats.writes += 1
        self.stats.write_bytes += length

    def write_soon(
        self,
        data: bytes | bytearray | memoryview,
        pos: int,
        length: int,
        done: Callable[[QEDError | None], None],
    ) -> bool:
        """Queue a write into one cluster that holds no data; False if :meth:`write` has to do it.

        Args:
            done: is called when it has ended, with what it failed of, as :meth:`write` raises it.
                Raises nothing. The write cannot be taken back.
        """
        if (
            not 0 <= pos <= self.image_size - length
            or not (length and self.may_write_inline and self.tables.is_free(pos, length))
            or self.gate.shut
            or self.closed
            or self.options.write_through
        ):
            return False
        self.gate.inside += 1
        ended = partial(self._queued_ended, done)
        self.queue.add(AllocatingWrite(pos, length, (data,), ended))
        return True

    def _queued_ended(
        self, done: Callable[[QEDError | None], None], request: AllocatingWrite
    ) -> None:
        self._wrote(request.pos, request.length)
        self.gate.leave()
        if request.error is None:
            self.stats.writes += 1
            self.stats.write_bytes += request.length
        done(request.error)

    async def _sync_inside(self) -> None:
        """Flush after what was written inline just now: then the gate is open."""
        self.gate.inside += 1
        try:
            await self.sync()
        finally:
            self.gate.leave()

    async def write_zeroes(self, pos: int, length: int) -> None:
        """Make ``[pos, pos + length)`` read as zeroes; errors and cancellation as :meth:`write`."""
        await self._enter_to_write()
        try:
            await self._writer.write_zeroes(pos, length)
            if self.options.write_through:
                await self.sync()
        finally:
            self._wrote(pos, length)
            self.gate.leave()
        self.budget.charge(0)
        self.stats.zero_writes += 1

    async def discard(self, pos: int, length: int) -> None:
        """Give host blocks of whole mapped clusters back; errors as :meth:`write`."""
        await self._enter_to_write()
        try:
            await self._writer.discard(pos, length)
        finally:
            self._wrote(pos, length)
            self.gate.leave()
        self.budget.charge(0)
        self.stats.zero_writes += 1

    async def populate(self, pos: int, length: int, buffers: WriteBuffers | None) -> None:
        """Give what is unallocated in a run of clusters a content: what shows there now.

        Clusters that a guest writes meanwhile keep what the guest wrote.

        Args:
            pos: where a cluster begins; ``[pos, pos + length)`` lies within one slice and ends with
                a cluster or with the image.
            buffers: what backing files have there; None for zeroes.

        Raises and cancellation: as :meth:`write`.
        """
        await self._enter_to_write()
        try:
            await self.queue.write(pos, length, buffers, only_free=True)
        finally:
            self.gate.leave()
        self.budget.charge(length)

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Tell ``watcher`` of every write, zero write and discard when it has ended, well or not.

        One watcher at a time. Growing is not told.
        """
        self._watcher = watcher
        self.may_write_inline = False  # what is written inline passes nobody
        try:
            yield
        finally:
            self._watcher = None
            self.may_write_inline = self.options.writable and self.failure is None

    def _wrote(self, pos: int, length: int) -> None:
        if self._watcher is not None:
            self._watcher(pos, length)

    async def flush(self) -> None:
        """Make every write that returned before this call durable.

        Raises:
            StorageError: the host could not; the image has failed then.
            ImageFailed: an earlier flush or metadata write failed.
        """
        await self._enter()
        try:
            if self.options.writable:
                self._check_failure()
                await self.sync()
                self._raise_background_error()
        finally:
            self.gate.leave()
        self.budget.charge(0)
        self.stats.flushes += 1

    async def sync(self) -> None:
        """The one place where the engine flushes its storage.

        After a failed flush nobody knows which of the writes before it are on disk, and the host
        may well say yes the next time. So the image fails.
        """
        if not self.options.flushes:
            return
        try:
            await self.storage.flush()
        except QEDError as error:
            self.fail(error)
            raise

    @property
    def ordered(self) -> bool:
        """Whether data is durable before it is reachable, backing file or not."""
        return self._committer.ordered

    @ordered.setter
    def ordered(self, ordered: bool) -> None:
        self._committer.ordered = ordered

    async def grow(self, new_size: int) -> None:
        """Make the image larger; the new part reads as zeroes. Durable on return.

        Raises: as :meth:`write`; on an error the size is the old one. RequestError: another call
        made it larger than that meanwhile.
        """
        await self._enter_to_write()
        try:
            async with self._resizing:
                if new_size == self.image_size:
                    return
                self._check_grows(new_size)
                await self._grower.prepare(new_size)
                await self.sync()
                await self._grower.finish(new_size)
                self._set_size(new_size)
                await self.sync()
        finally:
            self.gate.leave()

    def _check_grows(self, new_size: int) -> None:
        if new_size < self.image_size:
            raise RequestError(
                f"Cannot set the size to {new_size} bytes: the image has become"
                f" {self.image_size} bytes long meanwhile",
                length=new_size,
                size=self.image_size,
                errno=errno.ENOTSUP,
            )

    def _set_size(self, size: int) -> None:
        self.image_size = size
        self._writer.image_size = size
        self._committer.image_size = size

    async def _commit(self, group: Sequence[AllocatingWrite]) -> None:
        self._check_failure()
        await self._committer.commit(group)

    def _queue_idle(self) -> None:
        self.need_check.arm()

    # ---------------------------------------------------------------- mapping

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        """The runs of ``[pos, pos + length)``; see :meth:`.status.Mapper.block_status`."""
        await self._enter()
        try:
            return await self.mapper.block_status(pos, length)
        finally:
            self.gate.leave()
            self.budget.charge(0)

    async def first_runs(self, pos: int, length: int) -> list[Extent]:
        """The first of them, not merged; see :meth:`.status.Mapper.first_runs`."""
        await self._enter()
        try:
            return await self.mapper.first_runs(pos, length)
        finally:
            self.gate.leave()
            self.budget.charge(0)

    def extents(self) -> AsyncGenerator[Extent, None]:
        """The runs of the whole image, joined where they go on; gives the loop turns."""
        return joined_batches(self._batches())

    async def _batches(self) -> AsyncGenerator[list[Extent], None]:
        """Those of the mapper, each looked up inside the gate."""
        async with aclosing(self.mapper.batches(0, self.image_size)) as batches:
            while (batch := await self._next_batch(batches)) is not None:
                yield batch

    async def _next_batch(self, batches: AsyncIterator[list[Extent]]) -> list[Extent] | None:
        await self._enter()
        try:
            return await anext(batches, None)
        finally:
            self.gate.leave()

    # ------------------------------------------------------------ life cycle

    async def _enter(self) -> None:
        """Pass the gate; every caller leaves it again, and charges the budget for what it did.

        What comes here may end without suspending too, a flush with nothing to flush, say.
        """
        if self.budget.used_up:
            await self.budget.pause()
        if self.gate.shut:
            await self.gate.opened()
        if self.closed:
            raise ImageClosed("The image is closed")
        self.check_loop()
        self.gate.inside += 1

    async def _enter_to_write(self) -> None:
        self.check_writable()
        await self._enter()
        if self.failure is not None:  # since, while we waited at the gate
            self.gate.leave()
            self._check_failure()

    def check_writable(self) -> None:
        """Raise ImageClosed, ReadOnly or ImageFailed for an image that takes no writes."""
        if not self.options.writable:
            self._check_closed()
            raise ReadOnly('The image was opened read-only; open it with mode "r+"')
        self._check_failure()

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Be inside, as a request is: the image is not closed, repaired or emptied meanwhile.

        Raises:
            ImageClosed: the image is closed.
        """
        await self._enter()
        try:
            yield
        finally:
            self.gate.leave()

    def fail(self, error: BaseException) -> None:
        """Refuse writes from now on: the outcome of a metadata write or a flush is unknown."""
        if self.failure is None:
            self.failure = error
            self.need_check.may_clear = False
            self.may_write_inline = False

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Nobody else is inside: requests in flight have ended, new ones wait at the gate.

        For a repair. Inside, use the parts (``tables``, ``storage``), not the methods that enter.
        """
        async with self._door:
            self._check_closed()
            try:
                await self._shut_gate()
                async with self.queue.turn:
                    yield
            finally:
                self._open_gate()

    @asynccontextmanager
    async def bulk(self) -> AsyncIterator[Bulk | None]:
        """Fill an empty image; see :class:`~qedasync.engine.bulk.Bulk`. None if it cannot be done.

        Raises:
            StorageError: the tables could not be written; what was linked is in the image or not.
        """
        self.check_writable()
        file = lend(self.storage)
        if file is None or not self._is_empty():
            yield None
            return
        async with self.exclusive():
            self._check_failure()
            if not self._is_empty():
                raise StateError("The image has been written to meanwhile")
            bulk = Bulk(file, self.storage, self.tables, self.allocator)
            await bulk.begin(self.sync)
            try:
                try:
                    yield bulk
                except BaseException:
                    await self.tasks.run(bulk.give_up(), "bulk")
                    raise
                await self.tasks.run(bulk.finish(self.sync), "bulk")
            except BaseException as error:
                if bulk.in_doubt:
                    self.fail(error)
                raise

    def _is_empty(self) -> bool:
        return not self.header.has_backing and self.backing is None and not any(self.tables.l1)

    async def _shut_gate(self) -> None:
        self.budget.shut()
        await self.gate.close()

    def _open_gate(self) -> None:
        self.budget.open()
        self.gate.open()

    async def close(self) -> None:
        """Wait for requests in flight, flush, clear NEED_CHECK, release the files. Idempotent.

        Raises:
            QEDError: the flush failed, now or earlier, or the bit could not be cleared (it stays
            set then), or something failed in the background. Everything is released all the same.

        Cancellation: runs to the end.
        """
        if not self._ending.done:
            self.check_loop()
        await self._ending.run()

    async def _close(self) -> None:
        """Cancellation: comes when the loop shuts down; everything is released all the same."""
        try:
            await self._shut_for_good()
            await self.need_check.stop()
            await self._settle_storage()
            self._raise_background_error()
        finally:
            try:
                await self.tasks.drain()
            finally:
                await self._release()

    async def _shut_for_good(self) -> None:
        try:
            async with self._door:
                await self._shut_gate()
        finally:
            self.budget.shut()
            self.closed = True
            self.gate.open()  # who waited outside learns that the image is closed

    async def _settle_storage(self) -> None:
        if not self.options.writable:
            return
        self._check_failure()  # a close that says nothing promises that everything is on disk
        async with self.queue.turn:
            await self.need_check.clear()
            await self.sync()

    async def _release(self) -> None:
        self.cache.clear()
        self.tables.reset(array("Q"))  # up to 16 MiB, sooner than the collector would
        try:
            await self.storage.close()
        finally:
            if self.backing is not None:
                await self.backing.close()

    def _in_background(self, error: QEDError) -> None:
        """Something failed that nobody waited for; the next flush or close says so."""
        self._background_error = error

    def _raise_background_error(self) -> None:
        error, self._background_error = self._background_error, None
        if error is not None:
            raise error

    def _check_closed(self) -> None:
        if self.closed:
            raise ImageClosed("The image is closed")

    def _check_failure(self) -> None:
        if self.failure is not None:
            number = getattr(self.failure, "errno", None) or errno.EIO
            raise ImageFailed(
                f"The image takes no writes since an earlier one failed: {self.failure}."
                " Reads go on; close it and open it again, which checks it",
                errno=number,
            ) from self.failure

    def check_loop(self) -> None:
        """Refuse a call from another event loop than the image's own."""
        if asyncio.get_running_loop() is not self.loop:
            raise StateError("The image belongs to another event loop: open one on each")


@runtime_checkable
class Resident(Protocol):
    """What a storage may have beside the protocol: a file whose pages can be sent as they are."""

    def resident(self, offset: int, length: int) -> bool:
        """Whether the page cache holds all of a range."""
        ...

    def fileno(self) -> int:
        """The file's descriptor."""
        ...


def _view_nothing(length: int, pos: int) -> memoryview | None:
    """Without a map there is nothing to lend."""
    return None


def _write_nothing(data: bytes | bytearray | memoryview, pos: int, length: int) -> bool:
    """Nothing is written before it is durable."""
    return False
