"""convert: a disk into a new file, which is there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Literal

import qedasync
from qedasync import Disk
from qedasync.errors import RequestError
from qedasync.jobs.copying import CopyResult, copy
from qedasync.jobs.crew import in_thread
from qedasync.jobs.probing import Format, opened

__all__ = ["convert", "give_name", "new_file", "part_beside"]

_SECTOR = 512


async def convert(
    source: Disk | str | os.PathLike[str],
    target: Disk | str | os.PathLike[str],
    *,
    source_format: Format | None = None,
    format: Format = "qed",
    cluster_size: int | str = 65536,
    table_size: int = 4,
    backing_file: str | os.PathLike[str] | None = None,
    backing_format: Literal["raw", "qed"] | None = None,
    backing: Literal["auto", "any"] | bool = "auto",
    tasks: int = 8,
    in_order: bool = True,
    min_zero: int = 4096,
    target_is_zero: bool = False,
    salvage: bool = False,
    durable: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> CopyResult:
    """Copy a disk, its backing files included, into a new image or raw file.

    A target that is named appears under its name when it is whole, replacing what was there; until
    then it has another name, and after a failure or a cancellation it is gone. A block device is
    written where it is.

    Args:
        source: a file, or an open disk, which stays open.
        target: a file's name, or an open disk, at least as large as the source.
        source_format: ``"qed"`` or ``"raw"``; None looks at the file.
        format, cluster_size, table_size: of the new file.
        backing_file, backing_format: make it an overlay on this file, and copy only what the
            source itself holds. That file must read as the source's backing file does.
        backing: policy for the source's backing files.
        tasks, in_order, min_zero, target_is_zero, salvage, progress: see :func:`.copying.copy`.
        durable: flush before it is done.

    Raises:
        RequestError: the arguments do not fit.
        QEDError: what the source or the target met.

    Cancellation: waits for what is in flight; leaves no new file.
    """
    async with opened(source, source_format, backing) as disk:
        fill = partial(
            copy,
            disk,
            tasks=tasks,
            in_order=in_order,
            min_zero=min_zero,
            salvage=salvage,
            progress=progress,
        )
        if not isinstance(target, str | os.PathLike):
            result = await fill(target, target_is_zero=target_is_zero)
            if durable:
                await target.flush()
            return result
        if await in_thread(partial(_is_device, target)):
            if format != "raw" or backing_file is not None:
                raise RequestError("A device can only be a raw disk", errno=errno.ENOTSUP)
            async with qedasync.open_raw(target, "r+") as device:
                result = await fill(device, target_is_zero=target_is_zero)
                await device.flush()
                return result
        async with new_file(
            target,
            disk.size,
            format=format,
            cluster_size=cluster_size,
            table_size=table_size,
            backing_file=backing_file,
            backing_format=backing_format,
            durable=durable,
        ) as new:
            overlay = backing_file is not None
            return await fill(new, target_is_zero=not overlay, top_only=overlay, alone=True)


def _is_device(path: str | os.PathLike[str]) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


@asynccontextmanager
async def new_file(
    path: str | os.PathLike[str],
    size: int,
    *,
    format: Format = "qed",
    cluster_size: int | str = 65536,
    table_size: int = 4,
    backing_file: str | os.PathLike[str] | None = None,
    backing_format: Literal["raw", "qed"] | None = None,
    backing_unchecked: bool = False,
    durable: bool = True,
) -> AsyncIterator[Disk]:
    """A new disk to be filled inside the ``async with``; it gets its name at the end.

    Args: as for :func:`convert`; ``size`` in bytes, rounded up to 512. ``backing_unchecked``
        records the name without looking for the file.

    Raises: as :func:`qedasync.create` and :func:`qedasync.open_raw`; whatever the body raises. The
        new file is gone then, and what was under the name is as it was.
    """
    if format not in ("qed", "raw"):
        raise RequestError(f"the format is {format!r}; it must be 'qed' or 'raw'")
    size = -(-size // _SECTOR) * _SECTOR
    final = await in_thread(partial(os.path.realpath, os.fsdecode(path)))
    part = part_beside(final)
    await _refuse_locked(final)
    try:
        disk = await _make(
            part, size, format, cluster_size, table_size, backing_file, backing_format,
            backing_unchecked, durable,
        )  # fmt: skip
        async with disk:
            yield disk
            if durable:
                await disk.flush()
        await in_thread(partial(give_name, part, final, durable=durable))
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


async def _refuse_locked(path: str) -> None:
    """Raise if there is a file of that name that somebody has open for writing."""
    try:
        storage = await qedasync.open_storage(path, writable=True, lock=qedasync.LockRole.CREATE)
    except qedasync.ImageNotFound:
        return
    await storage.close()


async def _make(
    part: str,
    size: int,
    format: Format,
    cluster_size: int | str,
    table_size: int,
    backing_file: str | os.PathLike[str] | None,
    backing_format: Literal["raw", "qed"] | None,
    backing_unchecked: bool,
    durable: bool,
) -> Disk:
    cache: Literal["writeback", "unsafe"] = "writeback" if durable else "unsafe"
    if format == "raw":
        if backing_file is not None:
            raise RequestError("A raw file has no backing file", errno=errno.ENOTSUP)
        raw = await qedasync.open_raw(part, "r+", create=True, cache=cache)
        try:
            await raw.truncate(size)
        except BaseException:
            await raw.close()
            raise
        return raw
    await qedasync.create(
        part,
        size,
        cluster_size=cluster_size,
        table_size=table_size,
        backing_file=backing_file,
        backing_format=backing_format,
        backing_unchecked=backing_unchecked,
    )
    # The copy writes every byte that it does not leave to the backing file: nothing is read there.
    return await qedasync.open(part, "r+", cache=cache, backing=False)


def part_beside(path: str) -> str:
    """A name that nobody has, in the directory of ``path``: a relative backing name means the same
    there, and a rename will do."""
    name = f".qedasync-{os.getpid()}-{os.urandom(4).hex()}.part"
    return os.path.join(os.path.dirname(path), name)


def give_name(part: str, final: str, *, durable: bool) -> None:
    """Put a file in the place of ``final``, with the permissions and owner of what was there.

    Blocks. What follows a rename that is not ``durable`` may be lost in a power cut.
    """
    with suppress(FileNotFoundError):
        old = os.stat(final)
        with suppress(PermissionError):
            os.chown(part, old.st_uid, old.st_gid)
        os.chmod(part, stat.S_IMODE(old.st_mode))
    os.replace(part, final)
    if durable:
        directory = os.open(os.path.dirname(final), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
