"""Creating an image: everything is checked first, the header comes last.

A crash on the way leaves a file that is no QED image, never one that opens with wrong content. The
bytes are those of ``qemu-img create``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from qedasync.errors import ImageExists, ImageLocked, RequestError, storage_error
from qedasync.events import Event
from qedasync.format.header import (
    DEFAULT_CLUSTER_SIZE,
    DEFAULT_TABLE_SIZE,
    HEADER_BYTES,
    Header,
    encode_backing_name,
    new_header,
    validate_create,
    whole_sectors,
)
from qedasync.policy import BackingPolicy, check_policy, local_path
from qedasync.storage.base import Storage
from qedasync.storage.locks import LockRole
from qedasync.storage.opener import STORAGE_KINDS, open_storage
from qedasync.units import parse_size

__all__ = ["create"]

T = TypeVar("T")


async def create(
    path: str | os.PathLike[str],
    size: int | str | None = None,
    *,
    cluster_size: int | str = DEFAULT_CLUSTER_SIZE,
    table_size: int = DEFAULT_TABLE_SIZE,
    backing_file: str | os.PathLike[str] | None = None,
    backing_format: Literal["raw", "qed"] | None = None,
    backing_unchecked: bool = False,
    backing: BackingPolicy = "auto",
    overwrite: bool = True,
    force_table_size_1: bool = False,
    storage: str | Storage = "auto",
    lock: bool = True,
) -> None:
    """Make an empty image, durable on return; byte for byte what ``qemu-img create`` makes.

    Args:
        path: the file. With a storage object, a name for finding the backing file.
        size: guest-visible bytes, a number or like ``"10G"``; rounded up to 512, as qemu-img does.
            None takes the backing file's.
        cluster_size: bytes, a power of two from 4 KiB to 64 MiB.
        table_size: clusters of a table, a power of two from 2 to 16.
        backing_file: what the image is an overlay on. A relative name starts at the directory of
            ``path``, and is recorded as it is. Naming a file here allows it for this call; to open
            the image, its policy has to allow it (``open(..., backing="any")``).
        backing_format: ``"raw"`` is recorded, and the file never looked at; ``"qed"`` must be true;
            None looks.
        backing_unchecked: record the name, whatever it is, without looking for the file.
        backing: policy for the files below the backing file; False leaves them closed.
        overwrite: whether an existing file may be replaced.
        force_table_size_1: allow ``table_size`` 1, which QEMU cannot open.
        storage: ``"auto"``, ``"posix"``, ``"aiofiles"``, ``"blocking"`` (no event loop is needed
            unless a backing file is looked at), or an open storage object, which the caller keeps.
        lock: take QEMU's locks.

    Raises:
        RequestError: the arguments make no image. No file has been touched.
        BackingError: the backing file cannot be used. No file has been touched.
        ImageLocked: somebody has the file open. It is as it was.
        ImageExists: there is a file and it was not to be replaced.
        StorageError: the host failed. A file that was not there before is gone again; of one that
            was, the content may be lost.

    Cancellation: as for a failure.
    """
    wish = _Wish(
        path=os.fsdecode(path),
        cluster_size=parse_size(cluster_size),
        table_size=table_size,
        name=None if backing_file is None else os.fsdecode(backing_file),
        format=backing_format,
        unchecked=backing_unchecked,
        policy=backing,
        overwrite=overwrite,
        force_table_size_1=force_table_size_1,
        storage=storage,
        lock=lock,
    )
    known = None if size is None else whole_sectors(parse_size(size))
    _check(wish, known)
    header = await _plan(wish, known)
    name = b"" if wish.name is None else encode_backing_name(wish.name)
    if isinstance(storage, str):
        await _lay_down_file(wish, header, name)
    else:
        await _lay_down(storage, header, name)


class _Wish(NamedTuple):
    """The arguments of :func:`create`."""

    path: str
    cluster_size: int
    table_size: int
    name: str | None
    format: Literal["raw", "qed"] | None
    unchecked: bool
    policy: BackingPolicy
    overwrite: bool
    force_table_size_1: bool
    storage: str | Storage
    lock: bool

    def validate(self, size: int) -> None:
        """Whether the format has room for this; raises RequestError."""
        validate_create(
            size,
            self.cluster_size,
            self.table_size,
            self.name,
            force_table_size_1=self.force_table_size_1,
        )


def _check(wish: _Wish, size: int | None) -> None:
    """What can be known without asking the host."""
    if wish.format not in (None, "raw", "qed"):
        raise RequestError(f"backing_format is {wish.format!r}; it must be 'raw', 'qed' or None")
    if wish.format is not None and wish.name is None:
        raise RequestError("there is a backing_format without a backing_file")
    if isinstance(wish.storage, str) and wish.storage == "memory":
        raise RequestError(
            'an image made with storage="memory" is gone at once; pass a MemoryStorage and keep it'
        )
    if isinstance(wish.storage, str) and wish.storage not in STORAGE_KINDS:
        raise RequestError(f"there is no storage {wish.storage!r}")
    check_policy(wish.policy)
    wish.validate(size or 0)
    if size is None and (wish.name is None or wish.unchecked):
        raise RequestError("an image needs a size, or a backing file to take it from")


async def _plan(wish: _Wish, size: int | None) -> Header:
    """Look at the backing file; decide what to write."""
    if wish.name is not None:
        if await _on_host(wish, partial(_is_itself, wish.path, wish.name)):
            raise RequestError(f"{wish.path!r} cannot be its own backing file")
        if not wish.unchecked:
            from qedasync.backing import backing_size  # late: it comes with the engine

            found = await backing_size(
                wish.name,
                wish.format,
                wish.path,
                wish.policy,
                open_storage=open_storage,
                lock=wish.lock,
            )
            size = whole_sectors(found) if size is None else size
    assert size is not None
    wish.validate(size)
    is_raw = wish.format == "raw"
    return new_header(size, wish.cluster_size, wish.table_size, wish.name, is_raw)


async def _on_host(wish: _Wish, call: Callable[[], T]) -> T:
    """Make a call that blocks: on a thread, unless blocking is what was asked for."""
    if wish.storage == "blocking":
        return call()
    from qedasync.storage.workers import in_thread  # late: it comes with asyncio

    return await in_thread(call)


def _is_itself(path: str, name: str) -> bool:
    """Whether both mean the same file, there or not; blocks."""
    other = local_path(name, path)
    if other is None:
        return False
    with suppress(OSError):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


class _Claim:
    """A file's name, and whether it is ours to remove again.

    Attributes:
        made: whether :meth:`take` made the file.
    """

    def __init__(self, path: str) -> None:
        self.made = False
        self._path = path

    def take(self, overwrite: bool) -> None:
        """Make the file unless it is there; blocks.

        Raises:
            ImageExists: it is there and ``overwrite`` is false.
            StorageError: the host does not let us make it.
        """
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError as error:
            if not overwrite:
                raise ImageExists(errno.EEXIST, path=self._path) from error
        except OSError as error:
            raise storage_error(error, path=self._path) from error
        else:
            self.made = True
            os.close(fd)

    def give_up(self, error: BaseException) -> None:
        """Remove what we made, unless somebody has begun to use it; blocks."""
        if self.made and not isinstance(error, ImageLocked):
            with suppress(OSError):
                os.unlink(self._path)


async def _lay_down_file(wish: _Wish, header: Header, name: bytes) -> None:
    """Make or empty the file, under locks from the beginning, and write the image.

    Differs from QEMU: it empties the file before it looks at the arguments, and lets go of its
    locks in between.
    """
    assert isinstance(wish.storage, str)
    claim = _Claim(wish.path)
    try:
        await _on_host(wish, partial(claim.take, wish.overwrite))
        storage = await open_storage(
            wish.path,
            wish.storage,
            writable=True,
            create=True,
            lock=LockRole.CREATE if wish.lock else None,
        )
        try:
            await _lay_down(storage, header, name)
        finally:
            await storage.close()
    except BaseException as error:
        claim.give_up(error)
        raise


async def _lay_down(storage: Storage, header: Header, name: bytes) -> None:
    """Write the image: L1 (zeroes) and the name first, then the header, which makes it one.

    Order: what was in the file is gone for good before anything new is written, and what comes
    before the header is durable when the header is written; the header lies in one sector.
    """
    end = header.l1_table_offset + header.table_size * header.cluster_size
    if storage.size:
        await storage.truncate(0, Event.CREATE)
        await storage.flush()
    await storage.truncate(end, Event.CREATE)
    if not storage.zero_fills:
        await storage.write_zeroes(0, end, Event.CREATE)
    if name:
        await storage.write([name], HEADER_BYTES, Event.CREATE)
    await storage.flush()
    await storage.write([header.pack()], 0, Event.CREATE)
    await storage.flush()
