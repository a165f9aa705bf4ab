"""The files below an image, and how to write one of them for a while.

The files of a chain are open for reading, under locks that keep every writer out, ourselves too. To
write one, it is opened a second time; the new opening takes the place of the old one while nobody
reads, so that the image above always has something to read from, and always what is in the file
now. Afterwards it goes the same way back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from qedasync.backing import ChainFiles
from qedasync.check import check_image
from qedasync.disk import Disk, DiskSource
from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.source import Source
from qedasync.engine.sources import ImageSource, RawSource
from qedasync.errors import (
    BackingError,
    ImageClosed,
    QEDError,
    ReadOnly,
    RequestError,
    storage_error,
)
from qedasync.storage.base import Storage
from qedasync.storage.locks import LockRole
from qedasync.storage.workers import in_thread

__all__ = ["Layer", "Target", "find_layer", "layers_of", "writable"]


@dataclass(frozen=True, slots=True)
class Layer:
    """A file below an image.

    Attributes:
        parent: the image right above it.
        source: how that reads it.
        depth: 1 for the image's own backing file, 2 for that one's, ...
    """

    parent: Engine
    source: Source
    depth: int

    @property
    def path(self) -> str:
        """Its name, or what an open disk calls itself."""
        if isinstance(self.source, DiskSource):
            return self.source.disk.path
        return str(getattr(self.source, "path", ""))

    @property
    def engine(self) -> Engine | None:
        """Its engine, if it is an image that we know."""
        if isinstance(self.source, ImageSource):
            return self.source.engine
        if isinstance(self.source, DiskSource):
            # An Image is a layer above us; any other disk has no engine.
            engine = getattr(self.source.disk, "_engine", None)
            return engine if isinstance(engine, Engine) else None
        return None


def layers_of(engine: Engine) -> Iterator[Layer]:
    """The files below an image, from the top down."""
    parent: Engine | None = engine
    depth = 1
    while parent is not None and parent.backing is not None:
        layer = Layer(parent, parent.backing, depth)
        yield layer
        parent, depth = layer.engine, depth + 1


async def find_layer(engine: Engine, base: Disk | str | None) -> Layer:
    """The layer that ``base`` is: an open disk, a file's name, or None for the first one.

    Raises:
        RequestError: there is none.
    """
    for layer in layers_of(engine):
        if base is None or (isinstance(layer.source, DiskSource) and layer.source.disk is base):
            return layer
        if isinstance(base, str) and await in_thread(partial(_is_same, layer.path, base)):
            return layer
    if base is None:
        raise RequestError("The image does not have a backing file", errno=errno.ENOTSUP)
    name = base if isinstance(base, str) else base.path
    raise RequestError(f"{name!r} is not in the backing chain of {engine.path!r}")


def _is_same(path: str, other: str) -> bool:
    """Whether both names mean one file; blocks."""
    with suppress(OSError):
        return os.path.samefile(path, other)
    return path == other


class Target(Protocol):
    """A layer that is written; positions and lengths are guest bytes."""

    @property
    def size(self) -> int: ...

    async def write(self, data: bytearray, pos: int) -> None: ...

    async def write_zeroes(self, pos: int, length: int) -> None: ...

    async def grow(self, size: int) -> None: ...

    async def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _DiskTarget:
    """An open disk as a target."""

    disk: Disk

    @property
    def size(self) -> int:
        return self.disk.size

    async def write(self, data: bytearray, pos: int) -> None:
        await self.disk.pwrite(data, pos)

    async def write_zeroes(self, pos: int, length: int) -> None:
        await self.disk.write_zeroes(length, pos)

    async def grow(self, size: int) -> None:
        await self.disk.truncate(size)

    async def flush(self) -> None:
        await self.disk.flush()


@dataclass(frozen=True, slots=True)
class _ImageTarget:
    """An engine as a target."""

    engine: Engine

    @property
    def size(self) -> int:
        return self.engine.image_size

    async def write(self, data: bytearray, pos: int) -> None:
        await self.engine.write((data,), pos, len(data))

    async def write_zeroes(self, pos: int, length: int) -> None:
        await self.engine.write_zeroes(pos, length)

    async def grow(self, size: int) -> None:
        await self.engine.grow(size)

    async def flush(self) -> None:
        await self.engine.flush()


@dataclass(frozen=True, slots=True)
class _RawTarget:
    """A raw file as a target."""

    storage: Storage
    flushes: bool

    @property
    def size(self) -> int:
        return self.storage.size

    async def write(self, data: bytearray, pos: int) -> None:
        await self.storage.write([data], pos)

    async def write_zeroes(self, pos: int, length: int) -> None:
        await self.storage.write_zeroes(pos, length)

    async def grow(self, size: int) -> None:
        await self.storage.truncate(size)

    async def flush(self) -> None:
        if self.flushes:
            await self.storage.flush()


@asynccontextmanager
async def writable(top: Engine, layer: Layer, files: ChainFiles) -> AsyncIterator[Target]:
    """Have a layer to write.

    An image is written so that a power loss never leaves an entry without its data: whoever reads
    it through the image above must not need a repair.

    Args:
        top: the image whose requests reach the layer.

    Raises:
        ReadOnly: an open disk that was given as the backing file cannot be written.
        ImageLocked: somebody else has the file open. The chain is as it was.
        BackingError: its name means another file by now.
        StorageError, FormatError: it cannot be opened for writing.

    Cancellation: when the chain is in order.
    """
    if isinstance(layer.source, DiskSource):
        if layer.source.disk.readonly:
            raise ReadOnly(f"The backing file {layer.path!r} was opened read-only")
        target: Target = _DiskTarget(layer.source.disk)
        with _ordered(layer.engine):
            yield target
        return
    opening = _Opening(top, layer, files)
    try:
        await top.tasks.run(opening.begin(), "open a backing file to write")
        with _ordered(opening.engine):
            yield opening.target
    except BaseException as error:
        try:
            await top.tasks.run(opening.end(), "open a backing file to read")
        except QEDError as ending:
            error.add_note(f"Opening {layer.path!r} read-only again failed too: {ending}")
        raise
    await top.tasks.run(opening.end(), "open a backing file to read")


@contextmanager
def _ordered(engine: Engine | None) -> Iterator[None]:
    if engine is None:
        yield
        return
    engine.ordered = True
    try:
        yield
    finally:
        engine.ordered = False


class _Opening:
    """One layer, opened a second time to be written.

    Attributes:
        target: what to write to, once :meth:`begin` has returned.
        engine: the same, if it is an image.
    """

    target: Target

    def __init__(self, top: Engine, layer: Layer, files: ChainFiles) -> None:
        assert isinstance(layer.source, ImageSource | RawSource)
        self.engine: Engine | None = None
        self._top = top
        self._parent = layer.parent
        self._source = layer.source
        self._is_raw = isinstance(layer.source, RawSource)
        self._files = files
        self._swapped = False
        self._locks: Storage | None = None  # an opening that only holds locks

    async def begin(self) -> None:
        """Put a writable opening in the place of the one for reading."""
        async with self._top.exclusive():
            await self._check_same_file()
            source = await self._open(writable=True, lock=None)
            await self._put(source)
            if self._files.lock:
                role = LockRole.RAW_READ_WRITE if self._is_raw else LockRole.READ_WRITE
                self._locks = await self._files.open_storage(source.path, lock=role)
        if isinstance(source, RawSource):
            self.target = _RawTarget(source.storage, self._top.options.flushes)
            return
        self.engine = source.engine
        self.target = _ImageTarget(source.engine)
        await self._make_ready(source.engine)

    async def _make_ready(self, engine: Engine) -> None:
        """As any image that is opened to be written."""
        dirty = engine.header.need_check
        if dirty:
            engine.need_check.may_clear = False
        await engine.clear_autoclear()
        if dirty:
            result = await check_image(engine, repair=True)
            if result.corruptions or result.check_errors:
                raise BackingError(
                    f"the backing file {engine.path!r} was not closed cleanly and cannot be"
                    f" repaired: {result.corruptions} corruptions remain",
                    name=engine.path,
                )

    async def end(self) -> None:
        """Put an opening for reading back; the writable one stays if there is none to be had."""
        if not self._swapped:
            return
        try:
            async with self._top.exclusive():
                if self.engine is not None:
                    await self._settle(self.engine)
                await self._unlock()
                role = LockRole.SHARED_READ if self._is_raw else LockRole.READ_ONLY
                source = await self._open(writable=False, lock=role if self._files.lock else None)
                await self._put(source)
        except ImageClosed:
            pass  # and with it all of its chain
        finally:
            await self._unlock()

    async def _settle(self, engine: Engine) -> None:
        """Clear NEED_CHECK before the file is opened again; a failed image keeps it."""
        if engine.failure is None:
            async with engine.queue.turn:
                await engine.need_check.clear()
                await engine.sync()

    async def _unlock(self) -> None:
        locks, self._locks = self._locks, None
        if locks is not None:
            await locks.close()

    async def _check_same_file(self) -> None:
        source = self._source
        if source.file is None:
            return
        try:
            status = await in_thread(partial(os.stat, source.path))
        except OSError as error:
            raise storage_error(error, path=source.path) from error
        if (status.st_dev, status.st_ino) != source.file:
            raise BackingError(
                f"the backing file {source.path!r} has been replaced since it was opened",
                name=source.path,
                errno=errno.ESTALE,
            )

    async def _open(self, *, writable: bool, lock: LockRole | None) -> ImageSource | RawSource:
        """Another opening of the file, without what lies below it."""
        old, files = self._source, self._files
        storage = await files.open_storage(
            old.path, writable=writable, direct=files.direct, lock=lock
        )
        if isinstance(old, RawSource):
            return RawSource(storage, old.path, file=old.file)
        options = EngineOptions(
            writable=writable,
            flushes=self._top.options.flushes,
            l2_cache_bytes=files.l2_cache_bytes,
            need_check_timeout=0,
        )
        try:
            engine = await Engine.load(storage, options, old.path)
        except BaseException:
            await storage.close()
            raise
        return ImageSource(engine, old.name, file=old.file)

    async def _put(self, source: ImageSource | RawSource) -> None:
        """Let the image above read from ``source``, which gets what lies below the old one."""
        old = self._parent.backing
        assert old is not None
        if isinstance(old, ImageSource) and isinstance(source, ImageSource):
            source.engine.attach(old.engine.backing)
            old.engine.attach(None)
        self._parent.attach(source)
        self._swapped = True
        await old.close()
