"""Image: what users hold. Turns a call into a request the engine can believe.

Arguments are checked here, once: what goes on to the engine is inside the image and made of bytes.
The two lines of :meth:`Image.pread` are the hot path; everything it needs is bound at open.

What few programs ask of an image, a check and the jobs of :mod:`qedasync.chain`, is imported then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from qedasync.backing import ChainFiles, open_backing, open_new_backing
from qedasync.disk import Buffer, ClosesOnExit, Disk, DiskSource, check_range
from qedasync.engine.buffers import cut
from qedasync.engine.bulk import Bulk
from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.extents import Extent
from qedasync.engine.need_check import Clock
from qedasync.engine.resize import check_new_size
from qedasync.engine.source import Source
from qedasync.engine.stats import Stats
from qedasync.engine.views import pages_of
from qedasync.errors import FormatError, ImageClosed, QEDError, RequestError, StorageError
from qedasync.format.header import Features
from qedasync.policy import BackingPolicy, check_policy
from qedasync.storage.base import Storage
from qedasync.storage.host_file import HostFile, lend
from qedasync.storage.locks import LockRole
from qedasync.storage.opener import open_storage
from qedasync.units import parse_size
from qedasync.waiting import Opening

if TYPE_CHECKING:
    from qedasync.check import CheckResult

__all__ = ["Image", "open_image", "Cache", "as_buffer", "as_target", "check_choice"]

Cache: TypeAlias = Literal["writeback", "writethrough", "none", "unsafe"]
BackingFormat: TypeAlias = Literal["raw", "qed"]

_CACHES = ("writeback", "writethrough", "none", "unsafe")
_MODES = ("r", "r+")
_CHECKS = ("auto", "never")


class Image(ClosesOnExit):
    """An open QED image; made by :func:`open_image`, an async context manager.

    Any number of tasks of one event loop may call any of its methods at once. Offsets and lengths
    are guest bytes and need no alignment. Nothing is ever short: a call does all of it or raises.

    Where writes in flight overlap, each byte ends as one of the written values. A read that starts
    after a write has returned sees it. Cancelling a write stops it between its runs (a run lies in
    one piece in the file, or is allocated at once): each either never started, or has ended when
    ``CancelledError`` is raised. Buffers are untouched once a call has returned or raised.

    Every method raises :class:`~qedasync.errors.ImageClosed` on a closed image.
    """

    def __init__(self, engine: Engine, path: str, files: ChainFiles) -> None:
        self._engine = engine
        self._path = path
        self._files = files
        self._try_read = engine.try_read
        self._try_view = engine.try_view
        self._try_write = engine.try_write

    # ------------------------------------------------------------------ facts

    @property
    def path(self) -> str:
        """The image file as it was named at open."""
        return self._path

    @property
    def size(self) -> int:
        """Guest-visible bytes."""
        return self._engine.image_size

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster: what is allocated at once."""
        return self._engine.geometry.cluster_size

    @property
    def table_size(self) -> int:
        """Clusters of an L1 or L2 table."""
        return self._engine.geometry.table_size

    @property
    def backing_file(self) -> str | None:
        """The backing file's name as the image records it, or None."""
        return self._engine.backing_name

    @property
    def backing_format(self) -> str | None:
        """``"raw"`` if the image records that; else None, and the file is looked at."""
        return "raw" if self._engine.header.backing_is_raw else None

    @property
    def features(self) -> Features:
        """The header's feature bits as they are on disk."""
        return Features(self._engine.header.features)

    @property
    def readonly(self) -> bool:
        """Whether the image was opened with mode ``"r"``."""
        return not self._engine.options.writable

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._engine.closed

    @property
    def stats(self) -> Stats:
        """What the image has done since it was opened; a copy."""
        return self._engine.current_stats()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "read-only" if self.readonly else "writable"
        return f"<qedasync.Image {self._path!r} {self.size} bytes, {state}>"

    # ------------------------------------------------------------------ reads

    async def pread(self, length: int, offset: int) -> bytearray:
        """Exactly ``length`` bytes from ``offset`` on.

        Raises:
            RequestError: the range is not inside the image.
            StorageError, CorruptTable, BackingError: the bytes cannot be had.

        Cancellation: at once, or when no thread works for this read any more.
        """
        data = self._try_read(length, offset)
        if data is None:
            self._check_range(offset, length)
            data = await self._engine.read(length, offset) if length else bytearray()
        return data

    def try_pread(self, length: int, offset: int) -> bytearray | None:
        """The bytes, if they can be had at once; None if :meth:`pread` has to be awaited for them.

        For callers that have many requests at hand and would rather not make a coroutine for each.
        A range outside the image, and a task that ought to give the loop a turn, get None too.
        """
        return self._try_read(length, offset)

    async def read_view(self, length: int, offset: int) -> memoryview:
        """Exactly ``length`` bytes from ``offset`` on, as a read-only view.

        With ``open(..., map=True)`` it shows the page cache itself, if the bytes are one run in the
        file, or all zeroes; without, or else, it is a copy. A view may be kept after
        :meth:`close`: the file stays mapped, and locked, until the last one is gone.

        Raises and cancellation: as :meth:`pread`.
        """
        view = self._try_view(length, offset)
        if view is None:
            self._check_range(offset, length)
            view = await self._engine.view(length, offset) if length else memoryview(b"")
        return view

    def try_read_view(self, length: int, offset: int) -> memoryview | None:
        """The view, if it can be had at once and without a copy; as :meth:`try_pread`."""
        return self._try_view(length, offset)

    def try_readinto(self, buffer: bytearray | memoryview, offset: int) -> bool:
        """Fill ``buffer``, if that can be done at once and all of it lies in the image file; as
        :meth:`try_pread`. After False the buffer's content is undefined.

        Raises:
            CorruptTable: an entry on the way cannot be used.
        """
        return self._engine.try_read_data(memoryview(buffer), offset)

    def try_locate(self, length: int, offset: int) -> tuple[int, int] | None:
        """A descriptor, and the offset in it at which the bytes are: for ``os.sendfile``, and only
        until the loop's next turn. None unless they are one run of the image file, and in the page
        cache; as :meth:`try_pread`.

        Raises:
            CorruptTable: the entry on the way cannot be used.
        """
        return self._engine.try_locate(length, offset)

    def renew_soon(self) -> None:
        """Say that who calls ``try_pread`` and the like is called by the loop itself.

        Such a caller cannot pause. From the loop's next turn on as much as ever is done at once.
        """
        self._engine.budget.renew_soon()

    @property
    def used_up(self) -> bool:
        """Whether ``try_pread`` and the like do nothing more before the loop's next turn."""
        return self._engine.budget.used_up

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; answers its length in bytes.

        Raises and cancellation: as :meth:`pread`; after an error the buffer's content is undefined.
        """
        return await self.preadv((buffer,), offset)

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        """Fill ``buffers``, one after the other, from ``offset`` on; answers how many bytes.

        Raises and cancellation: as :meth:`readinto`.
        """
        views = [as_target(buffer) for buffer in buffers]
        length = sum(map(len, views))
        if not self._engine.try_read_into(views, offset, length):
            self._check_range(offset, length)
            if length:
                await self._engine.read_into(views, offset, length)
        return length

    # ----------------------------------------------------------------- writes

    async def pwrite(self, data: Buffer, offset: int) -> int:
        """Write all of ``data`` at ``offset``; answers its length in bytes.

        With ``cache="writethrough"`` it is durable on return, else after the next :meth:`flush`.

        Raises:
            RequestError: the range is not inside the image.
            ReadOnly, ImageFailed: the image takes no writes.
            StorageError, CorruptTable, BackingError: a part could not be written; each cluster
                holds its old or its new content.

        Cancellation: a write that has started runs to its end first. ``data`` must not change
        before the call has ended.
        """
        if type(data) is not bytes:
            data = as_buffer(data)
        length = len(data)
        if not self._try_write(data, offset, length):
            self._check_range(offset, length)
            if length:
                await self._engine.write((data,), offset, length)
        return length

    def try_pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> bool:
        """Write all of ``data``, if that can be done at once; False if :meth:`pwrite` has to be
        awaited, which then does it. As :meth:`try_pread`.
        """
        return self._try_write(data, offset, len(data))

    def pwrite_soon(
        self,
        data: bytes | bytearray | memoryview,
        offset: int,
        done: Callable[[QEDError | None], None],
    ) -> bool:
        """Take a write into one cluster that holds no data yet, without a coroutine that waits for
        it; False if :meth:`pwrite` has to be awaited, which then does it. As :meth:`try_pwrite`.

        Args:
            data: must not change before ``done`` is called.
            done: is called when the write has ended: with None if all is as after :meth:`pwrite`,
                or with what that would have raised. It raises nothing.
        """
        return self._engine.write_soon(data, offset, len(data), done)

    async def pwritev(self, buffers: Iterable[Buffer], offset: int) -> int:
        """Write ``buffers``, one after the other, at ``offset``; answers how many bytes.

        Raises and cancellation: as :meth:`pwrite`.
        """
        views = [as_buffer(buffer) for buffer in buffers]
        length = sum(map(len, views))
        self._check_range(offset, length)
        if length:
            await self._engine.write(views, offset, length)
        return length

    async def write_zeroes(self, length: int, offset: int) -> None:
        """Make ``length`` bytes from ``offset`` on read as zeroes, without writing any if it can.

        Whole clusters are marked; clusters that hold data keep their place in the file, and the
        host may take their blocks back.

        Raises and cancellation: as :meth:`pwrite`.
        """
        self._check_range(offset, length)
        if length:
            await self._engine.write_zeroes(offset, length)

    async def discard(self, length: int, offset: int) -> None:
        """Say that the bytes are not needed: they read as zeroes or as before, from then on.

        Whole clusters in the range give their blocks back to the host where it can take them; the
        image file stays as long as it is.

        Raises and cancellation: as :meth:`pwrite`.
        """
        self._check_range(offset, length)
        if length:
            await self._engine.discard(offset, length)

    async def populate(self, data: Buffer, offset: int) -> None:
        """Write ``data`` where nothing is allocated yet, and leave all other clusters alone.

        For what shows through from the backing file and is to be kept here: a guest that writes
        meanwhile loses nothing. Clusters are marked as zeroes if ``data`` is nothing else. Not
        durable before the next :meth:`flush`, whatever the cache mode.

        Args:
            data: whole clusters, or up to the image's end.
            offset: where a cluster begins.

        Raises and cancellation: as :meth:`pwrite`.
        """
        content = as_buffer(data)
        length = len(content)
        self._check_range(offset, length)
        end, geometry = offset + length, self._engine.geometry
        zeroes = bytes(content).count(0) == length
        if offset & geometry.cluster_mask or (end & geometry.cluster_mask and end < self.size):
            raise RequestError("only whole clusters can be populated", offset=offset, length=length)
        pos = offset
        while pos < end:
            stop = min(geometry.end_of_slice(pos), end)
            part = None if zeroes else cut([content], pos - offset, stop - pos)
            await self._engine.populate(pos, stop - pos, part)
            pos = stop

    async def flush(self) -> None:
        """Make every write that returned before this call survive a power loss.

        With ``cache="unsafe"``, or on a read-only image, does nothing.

        Raises:
            StorageError: the host could not. The image has failed then: reads go on, writes refuse.
            ImageFailed: an earlier flush or metadata write failed.
        """
        await self._engine.flush()

    async def truncate(self, size: int) -> None:
        """Grow the image to ``size`` bytes, a multiple of 512; the new part reads as zeroes.

        The new size is durable on return. A crash on the way leaves the old size.

        Raises:
            RequestError: smaller than the image (``errno`` ENOTSUP), not a multiple of 512, or more
                than the image's tables can map.
            Else as :meth:`pwrite`.
        """
        self._check_open()
        check_new_size(self._engine.geometry, self.size, size)
        if size != self.size:
            await self._engine.grow(size)

    # -------------------------------------------------------------- the whole

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """What ``[offset, offset + length)`` is made of: runs in order, without gaps.

        Raises:
            RequestError: the range is not inside the image.
            CorruptTable, StorageError, BackingError: a table cannot be read or used.
        """
        self._check_range(offset, length)
        return await self._engine.block_status(offset, length) if length else []

    def extents(self) -> AsyncIterator[Extent]:
        """The runs of the whole image as :meth:`block_status` gives them, looked up as one goes."""
        return self._engine.extents()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[HostFile | None]:
        """The image file for large reads on other threads; None if it is no plain file.

        Nobody closes or repairs it meanwhile. Extents of depth 0 say what lies where.
        """
        async with self._engine.entered():
            yield lend(self._engine.storage)

    @asynccontextmanager
    async def bulk(self) -> AsyncIterator[Bulk | None]:
        """Fill an image that holds nothing yet, by large writes on other threads.

        What is linked in the ``async with`` is in the image when that has ended without an error.
        Until then whoever else calls the image waits. None if it holds something, has a backing
        file, or is no plain file.

        Raises: as :meth:`pwrite`.
        """
        async with self._engine.bulk() as bulk:
            yield bulk

    async def check(
        self, repair: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> CheckResult:
        """Look at every table entry; see :class:`~qedasync.check.CheckResult`.

        Args:
            repair: mend what is wrong. Nothing else runs on the image meanwhile. Without it, the
                result lists what would be done.
            progress: called with (done, total) now and then.

        Raises:
            ReadOnly: repair of a read-only image.
            StorageError: a repair could not be written.
        """
        from qedasync.check import check_image

        self._check_open()
        self._engine.check_loop()
        if not repair:
            return await check_image(self._engine, progress=progress)
        async with self._engine.job:
            return await check_image(self._engine, repair=True, progress=progress)

    # -------------------------------------------------------- its place in a chain

    async def change_backing_file(
        self, name: str | os.PathLike[str] | None, format: BackingFormat | None = None
    ) -> None:
        """Record another backing file's name in the header, or none, and do nothing else.

        Nothing is compared and nothing opened: the image reads differently from the next open on if
        the new file has other content. Until then it goes on with what it has open. See
        :meth:`rebase` for the safe way. Durable on return; a crash leaves the old name or the new.

        Args:
            name: as it is to be recorded; a relative one starts at the image's directory.
            format: ``"raw"`` is recorded, so that nobody looks for an image in the file; nothing
                else can be.

        Raises:
            RequestError: the header has no room for it (``errno`` ENOSPC, ``length`` the name's
                bytes), it is too long for a name (ENAMETOOLONG), or the header has unknown
                compatible features (ENOTSUP).
            ReadOnly, ImageFailed: the image takes no writes.
            StorageError: the header could not be written; the old name stands.

        Cancellation: as :meth:`pwrite`.
        """
        from qedasync.chain.name import change_name

        recorded = self._name_to_record(name, format)
        await change_name(self._engine, recorded, format == "raw")

    async def rebase(
        self,
        new: str | os.PathLike[str] | None,
        *,
        format: BackingFormat | None = None,
        backing: BackingPolicy | Disk = "auto",
        progress: Callable[[int, int], None] | None = None,
        tasks: int = 8,
    ) -> None:
        """Put the image on another backing file, or on none; it reads the same all the while.

        What shows through and differs from the new file is copied into the image first. Others
        may read and write meanwhile. Wherever this ends, by an error, a cancellation, a kill or a
        power loss, the image stands on the old file or on the new one and reads the same.

        Args:
            new: the name to record; a relative one starts at the image's directory. None: no
                backing file, as :meth:`stream`.
            format: ``"raw"`` or ``"qed"``; None to look at the file. Only ``"raw"`` is recorded.
            backing: which files below the new one may be opened, as for :func:`qedasync.open`. An
                open disk takes the place of the file, and belongs to the image from here on.
            progress: called with (done, total) bytes now and then.
            tasks: how many pieces are compared at a time.

        Raises:
            RequestError: the name cannot be recorded (see :meth:`change_backing_file`), or the
                image was opened without the backing file that it names.
            BackingError: the new file is missing, broken or not allowed, or the image itself.
            ReadOnly, ImageFailed: the image takes no writes.
            StorageError: reading or writing failed.
        """
        from qedasync.chain.rebase import rebase
        from qedasync.chain.walk import Progress

        name: str | None = None
        try:
            name = self._name_to_record(new, format)
            source = await self._open_new_backing(name, format, backing)
        except BaseException:
            if isinstance(backing, Disk):
                await backing.close()
            raise
        try:
            await rebase(
                self._engine,
                name,
                source,
                is_raw=format == "raw",
                progress=Progress(progress),
                tasks=tasks,
            )
        finally:
            if source is not None and self._engine.backing is not source:
                await source.close()

    async def stream(
        self, progress: Callable[[int, int], None] | None = None, *, tasks: int = 8
    ) -> None:
        """Copy all that shows through into the image, and have no backing file from then on.

        Promises, arguments and errors: as :meth:`rebase`.
        """
        await self.rebase(None, progress=progress, tasks=tasks)

    async def commit(
        self,
        *,
        base: Disk | str | os.PathLike[str] | None = None,
        empty: bool = True,
        progress: Callable[[int, int], None] | None = None,
        tasks: int = 8,
    ) -> None:
        """Copy what the image holds into its backing file, then make the image hold nothing.

        The image reads the same all the while, and others may read and write it. A smaller backing
        file grows. A file of the chain is opened for writing meanwhile, under QEMU's locks; a disk
        that was passed to :func:`qedasync.open` as ``backing`` has to be writable. Wherever this
        ends, by an error, a cancellation, a kill or a power loss, the image reads the same; the
        backing file has all of it before the image loses any.

        Args:
            base: a file further down the chain: an open disk that is part of it, or a file's name.
                It gets what the files above it hold; the image is not emptied then, and the files
                between no longer make sense without it.
            empty: else the image keeps what it holds.
            progress, tasks: as for :meth:`rebase`.

        Raises:
            RequestError: there is no backing file (``errno`` ENOTSUP), or ``base`` is none.
            ReadOnly, ImageFailed: the image or its backing file takes no writes.
            ImageLocked: somebody else has the backing file open.
            StorageError, BackingError: reading or writing failed.
        """
        from qedasync.chain.commit import commit
        from qedasync.chain.walk import Progress

        where = base if base is None or isinstance(base, Disk) else os.fsdecode(base)
        self._check_open()
        self._engine.check_loop()
        await commit(
            self._engine,
            self._files,
            base=where,
            empty=empty,
            progress=Progress(progress),
            tasks=tasks,
        )

    def _name_to_record(
        self, name: str | os.PathLike[str] | None, format: BackingFormat | None
    ) -> str | None:
        """A name that the header has room for, or None; looked at before anything is opened."""
        from qedasync.chain.name import plan_name

        self._check_open()
        self._engine.check_loop()
        self._engine.check_writable()
        if format not in (None, "raw", "qed"):
            raise RequestError(f"format is {format!r}; it must be 'raw', 'qed' or None")
        recorded = os.fsdecode(name) if name else None
        plan_name(self._engine.header, recorded, format == "raw")
        return recorded

    async def _open_new_backing(
        self, name: str | None, format: BackingFormat | None, backing: BackingPolicy | Disk
    ) -> Source | None:
        if isinstance(backing, Disk):
            if name is None:
                raise RequestError("an open disk needs a name to record")
            return DiskSource(backing)
        check_policy(backing)
        if name is None:
            return None
        files = self._files
        return await open_new_backing(
            name,
            format,
            self._path,
            backing,
            open_storage=files.open_storage,
            l2_cache_bytes=files.l2_cache_bytes,
            lock=files.lock,
            direct=files.direct,
        )

    # ------------------------------------------------------------- life cycle

    async def close(self) -> None:
        """Wait for requests in flight, flush, clear NEED_CHECK, release the files. Idempotent.

        Raises:
            QEDError: something could not be flushed, or failed in the background. NEED_CHECK stays
                set then; the files are released all the same.

        Cancellation: runs to the end.
        """
        await self._engine.close()

    # ---------------------------------------------------------------- helpers

    def _check_open(self) -> None:
        if self._engine.closed:
            raise ImageClosed("The image is closed")

    def _check_range(self, offset: int, length: int) -> None:
        self._check_open()
        check_range("image", offset, length, self._engine.image_size)


def as_buffer(data: Buffer) -> Buffer:
    """Something of plain bytes, without a copy where possible."""
    if type(data) is bytes or type(data) is bytearray:
        return data
    view = memoryview(data)
    return _as_bytes(view) if view.c_contiguous else bytes(view)


def as_target(buffer: bytearray | memoryview) -> bytearray | memoryview:
    if type(buffer) is bytearray:
        return buffer
    view = memoryview(buffer)
    if view.readonly or not view.c_contiguous:
        raise RequestError("A buffer to read into must be writable and contiguous")
    return _as_bytes(view)


def _as_bytes(view: memoryview) -> memoryview:
    if view.format == "B" and view.ndim == 1:
        return view
    return view.cast("B") if view.nbytes else memoryview(bytearray())  # nothing cannot be cast


class _Wish(NamedTuple):
    """The arguments of :func:`open_image`."""

    path: str
    writable: bool
    cache: str
    l2_cache_bytes: int
    storage: str | Storage
    lock: bool
    check: str
    backing: BackingPolicy | Disk
    need_check_timeout: float
    clock: Clock | None
    map: bool


def open_image(
    path: str | os.PathLike[str],
    mode: Literal["r", "r+"] = "r",
    *,
    cache: Cache = "writeback",
    l2_cache_size: int | str = "32M",
    storage: str | Storage = "auto",
    lock: bool = True,
    check: Literal["auto", "never"] = "auto",
    backing: BackingPolicy | Disk = "auto",
    need_check_timeout: float = 5.0,
    clock: Clock | None = None,
    map: bool = False,
) -> Opening[Image]:
    """Open a QED image: ``await`` it, or use it in ``async with``.

    Whatever the size of the image, no more than the header and L1 are read.

    Args:
        path: the image file. With a storage object, a name for messages and for finding the backing
            file.
        mode: ``"r"``, or ``"r+"`` for writing too.
        cache: ``"writeback"``: durable after ``flush()``. ``"writethrough"``: every write is
        durable
            when it returns. ``"none"``: past the host's page cache (O_DIRECT). ``"unsafe"``: never
            flushed, a power loss may destroy the image.
        l2_cache_size: bytes for slices of L2 tables, as a number or like ``"32M"``.
        storage: ``"auto"``, ``"posix"``, ``"aiofiles"``, ``"memory"`` (the file's content, changes
        are
            forgotten), or an object of the storage protocol, which the image then owns.
        lock: take QEMU's locks, so that QEMU and we keep out of each other's way.
        check: ``"auto"`` repairs an image that was not closed cleanly before the first write
            (mode ``"r+"`` only); ``"never"`` leaves it, and its NEED_CHECK bit, as it is.
        backing: which backing files may be opened: ``"auto"`` (in the image's own directory),
            ``"any"``, False (none: unallocated areas read as zeroes), True (as ``"auto"``), or a
            callable that is asked; see :mod:`qedasync.backing`. An open disk takes the place of
            whatever the image names, and belongs to the image from here on.
        need_check_timeout: seconds without an allocating write after which the image is marked
            clean; 0 for only at close.
        clock: time for the above; for tests.
        map: let :meth:`Image.read_view` show the page cache itself, and :meth:`Image.pread` copy
            from it, which is twice as fast (mode ``"r"``, with ``lock``).
            While a view or the image is there, nobody can open the file for writing or cut it: the
            kernel's lease on it makes them wait, up to 45 s if views are kept. Only who may take
            such a lease (the file's owner), on a local file, gets views; others get copies. What
            remains: a page that has left the cache, and that the disk fails to read again, ends
            the process (SIGBUS), as does a view of what is cut off after these 45 s.

    Raises:
        StorageError: the file cannot be opened (``ImageNotFound``, ``AccessDenied``,
        ``ImageLocked``).
        FormatError: it is not a QED image that can be used.
        BackingError: the backing file is missing, broken or not allowed.
        RequestError: an argument is wrong. Raised by the call itself, before anything is opened.
    """
    check_choice("mode", mode, _MODES)
    check_choice("cache", cache, _CACHES)
    check_choice("check", check, _CHECKS)
    if not isinstance(backing, Disk):
        check_policy(backing)
    if map and (mode != "r" or not lock or cache == "none"):
        raise RequestError('map needs mode "r", the lock, and the page cache', errno=errno.EINVAL)
    wish = _Wish(
        path=os.fsdecode(path),
        writable=mode == "r+",
        cache=cache,
        l2_cache_bytes=parse_size(l2_cache_size),
        storage=storage,
        lock=lock,
        check=check,
        backing=backing,
        need_check_timeout=need_check_timeout,
        clock=clock,
        map=map,
    )
    return Opening(partial(_open, wish))


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RequestError(
            f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}"
        )


async def _open(wish: _Wish) -> Image:
    try:
        storage = await _open_storage(wish)
    except BaseException:
        if isinstance(wish.backing, Disk):
            await wish.backing.close()
        raise
    options = EngineOptions(
        writable=wish.writable,
        write_through=wish.cache == "writethrough",
        flushes=wish.cache != "unsafe",
        l2_cache_bytes=wish.l2_cache_bytes,
        need_check_timeout=wish.need_check_timeout,
        clock=wish.clock,
    )
    try:
        engine = await Engine.load(storage, options, wish.path)
    except BaseException:
        await storage.close()
        if isinstance(wish.backing, Disk):
            await wish.backing.close()
        raise
    try:
        await _make_ready(engine, wish)
    except BaseException:
        with suppress(QEDError):  # what went wrong first is what to tell
            await engine.close()
        raise
    files = ChainFiles(
        open_storage,
        lock=wish.lock,
        direct=wish.cache == "none",
        l2_cache_bytes=wish.l2_cache_bytes,
    )
    return Image(engine, wish.path, files)


async def _open_storage(wish: _Wish) -> Storage:
    if not isinstance(wish.storage, str):
        return wish.storage
    return await open_storage(
        wish.path,
        wish.storage,
        writable=wish.writable,
        direct=wish.cache == "none",
        lock=_lock_role(wish),
    )


def _lock_role(wish: _Wish) -> LockRole | None:
    if not wish.lock:
        return None
    return LockRole.READ_WRITE if wish.writable else LockRole.READ_ONLY


async def _make_ready(engine: Engine, wish: _Wish) -> None:
    """Open the backing file and repair what a crash left; what writes comes last."""
    dirty = engine.header.need_check and wish.writable
    if dirty:
        engine.need_check.may_clear = False
    engine.attach(await _open_backing(engine, wish))
    await engine.clear_autoclear()
    if dirty and wish.check == "auto":
        await _repair(engine, wish)
    if wish.map and (pages := pages_of(engine.storage)) is not None:
        engine.lend(pages)


async def _open_backing(engine: Engine, wish: _Wish) -> Source | None:
    if isinstance(wish.backing, Disk):
        return DiskSource(wish.backing)
    return await open_backing(
        engine,
        wish.path,
        wish.backing,
        open_storage=open_storage,
        l2_cache_bytes=wish.l2_cache_bytes,
        lock=wish.lock,
        direct=wish.cache == "none",
    )


async def _repair(engine: Engine, wish: _Wish) -> None:
    from qedasync.check import check_image

    result = await check_image(engine, repair=True)
    if not result.corruptions and not result.check_errors:
        return
    text = (
        f"{wish.path!r} was not closed cleanly and cannot be repaired: {result.corruptions}"
        f" corruptions and {result.check_errors} read errors remain. Open it read-only, or with"
        ' check="never", to save what is there'
    )
    if result.read_errno:
        raise StorageError(result.read_errno, text)
    raise FormatError(text)
