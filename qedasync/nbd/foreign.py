"""Disk images in formats that are not ours, read by means of a ``qemu-nbd`` that is started for it.

What such an image names beside itself (a backing file, extents) passes a policy here, as a QED
image's backing file does, and each file's format is settled here too. QEMU gets the whole chain
spelled out, and follows no name by itself. The files are locked as QEMU locks them, from when they
are looked at until QEMU has them: nobody changes their headers in between.

::

    async with nbd.foreign("disk.vmdk") as disk:
        await qedasync.convert(disk, "disk.qed")

    async with qedasync.open("overlay.qed", backing=nbd.backing()) as image: ...
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Literal, TypeAlias

import qedasync
from qedasync import BackingRequest, Disk, LockRole, Opening
from qedasync.errors import (
    BackingError,
    BackingRefused,
    FormatError,
    RequestError,
    StorageError,
)
from qedasync.nbd.client import Client, connect
from qedasync.nbd.helper import Helper
from qedasync.nbd.references import Reference, references
from qedasync.nbd.steady import SteadyLink
from qedasync.nbd.uri import Address, is_nbd_uri

__all__ = ["FOREIGN_FORMATS", "ForeignImage", "backing", "foreign"]

FOREIGN_FORMATS = ("qcow2", "vmdk", "vdi", "vhdx", "vpc", "qcow", "parallels")
"""What :func:`foreign` opens."""

Policy: TypeAlias = Literal["auto", "any"] | bool | Callable[[BackingRequest], Any]

_MAX_FILES = 64
_TIMEOUT = 30.0


class ForeignImage(Client):
    """An image of another format as a read-only disk; made by :func:`foreign`.

    Attributes:
        format: QEMU's name of it.
        backing_file, backing_format: as the image records them, or None.
    """

    def __init__(self, path: str, format: str, below: Reference | None, helper: Helper) -> None:
        address = Address(tls=False, export="", socket=path)
        super().__init__(address, SteadyLink(helper.link, _no_other, 0.0, path))
        self.format = format
        self.backing_file = None if below is None else below.name
        self.backing_format = None if below is None else below.format
        self._path = path
        self._helper = helper

    @property
    def path(self) -> str:
        """The image file."""
        return self._path

    async def close(self) -> None:
        """Hang up and end the helper. Idempotent.

        Cancellation: when the helper has ended.
        """
        try:
            await super().close()
        finally:
            await self._helper.stop()


async def _no_other() -> Any:
    raise AssertionError("a helper has one connection")


def foreign(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    backing: Policy = "auto",
    lock: bool = True,
    program: str = "qemu-nbd",
    timeout: float = _TIMEOUT,
) -> Opening[ForeignImage]:
    """Open an image of another format for reading: ``await`` it, or use it in ``async with``.

    Args:
        path: a regular file or block device.
        format: one of :data:`FOREIGN_FORMATS`; None to look.
        backing: which files the image may name, and those in turn: as for :func:`qedasync.open`,
            but a function cannot give a disk. With False a backing file's part reads as zeroes.
        lock: take QEMU's locks.
        program: qemu-nbd's name or path.
        timeout: seconds for it to open the image.

    Raises:
        RequestError: that is no format we know. Raised by the call itself, as the ones below are
            not.
        FormatError: the file is not of the format, or is damaged.
        BackingRefused, BackingError: a file that it names is not allowed, or not there.
        StorageError: there is no qemu-nbd, or it cannot open the image.
    """
    if format is not None and format not in FOREIGN_FORMATS:
        raise RequestError(f"the format is {format!r}; it must be {', '.join(FOREIGN_FORMATS)}")
    name = os.fsdecode(path)

    async def make() -> ForeignImage:
        async with AsyncExitStack() as held:
            planning = _Planning(backing, lock, held)
            fmt, node, below = await planning.top(os.path.join(os.getcwd(), name), format)
            helper = await Helper.start(program, node, name, timeout)
        return ForeignImage(name, fmt, below, helper)

    return Opening(make)


def backing(
    policy: Policy = "any", *, lock: bool = True, program: str = "qemu-nbd"
) -> Callable[[BackingRequest], Awaitable[bool | Disk]]:
    """A policy for :func:`qedasync.open` that also opens NBD URIs and other formats.

    Args:
        policy: which names may be opened. ``"auto"`` lets no URI pass; a function is asked, and may
            answer with a disk.
        lock, program: as for :func:`foreign`.
    """

    async def decide(request: BackingRequest) -> bool | Disk:
        answer = await _ask(policy, request)
        if answer is not True:
            return answer
        if not request.path and is_nbd_uri(request.name):
            return await connect(request.name)
        if request.format in FOREIGN_FORMATS:
            return await foreign(
                request.path, request.format, backing=policy, lock=lock, program=program
            )
        return True

    return decide


async def _ask(policy: Policy, request: BackingRequest) -> bool | Disk:
    """What a policy says of a name."""
    if not callable(policy):
        return policy == "any" or (policy in ("auto", True) and request.is_beside)
    answer = policy(request)
    if inspect.isawaitable(answer):
        answer = await answer
    return answer if isinstance(answer, Disk) else bool(answer)


class _Planning:
    """Finds out all files of a chain, and what QEMU is to be told about each.

    Args:
        policy: what they may be.
        held: gets the files, open and locked.
    """

    def __init__(self, policy: Policy, lock: bool, held: AsyncExitStack) -> None:
        self._policy = policy
        self._lock = lock
        self._held = held
        self._passed: set[str] = set()

    async def top(self, path: str, fmt: str | None) -> tuple[str, dict[str, Any], Reference | None]:
        """The image's format, the options that open it, and its backing file."""
        storage, found = await self._look(path, fmt)
        if found not in FOREIGN_FORMATS:
            raise FormatError(
                f"{path!r} is a {found} image, for which qemu-nbd is not used", field="format"
            )
        named = await references(storage, found)
        below = next((one for one in named if one.role == "backing"), None)
        return found, await self._node(path, found, named, 1), below

    async def _look(self, path: str, fmt: str | None) -> tuple[qedasync.Storage, str]:
        """Open a file, to be held; answers what it is, too.

        Args:
            fmt: what it must be, or None.
        """
        self._passed.add(await asyncio.to_thread(os.path.realpath, path))
        role = LockRole.SHARED_READ if fmt == "raw" else LockRole.READ_ONLY
        storage = await qedasync.open_storage(path, lock=role if self._lock else None)
        self._held.push_async_callback(storage.close)
        if fmt == "raw":
            return storage, fmt
        head = bytearray(512)
        await storage.read_into([head], 0)
        found = qedasync.identify(head)
        if fmt == "vpc" and found == "raw":
            found = fmt  # one of fixed size begins with its data
        if fmt not in (None, found):
            raise FormatError(f"{path!r} is not a {fmt} image", field="format")
        return storage, found

    async def _node(
        self, path: str, fmt: str, named: list[Reference], depth: int
    ) -> dict[str, Any]:
        node: dict[str, Any] = {
            "driver": fmt,
            "read-only": True,
            "force-share": not self._lock,
            "file": self._file(path),
        }
        for one in named:
            if one.role != "backing":
                below = await self._admit(one, path, depth)
                if one.role == "data-file":
                    node["data-file"] = self._file(below)
                else:
                    await self._check_extent(one, path, below)
        if fmt != "raw":
            node["backing"] = await self._below(named, path, depth)
        return node

    def _file(self, path: str) -> dict[str, Any]:
        driver = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
        return {"driver": driver, "filename": path, "force-share": not self._lock}

    async def _below(self, named: list[Reference], path: str, depth: int) -> dict[str, Any] | None:
        """The node of the backing file, if there is one and it is wanted."""
        one = next((one for one in named if one.role == "backing"), None)
        if one is None or self._policy is False:
            return None
        below = await self._admit(one, path, depth)
        try:
            storage, found = await self._look(below, one.format)
            named = await self._named(storage, below, found)
        except (FormatError, StorageError) as error:
            raise BackingError(
                f"{path!r}: cannot use the backing file {one.name!r}: {error}",
                name=one.name,
                errno=error.errno or errno.EIO,
            ) from error
        return await self._node(below, found, named, depth + 1)

    async def _named(self, storage: qedasync.Storage, path: str, fmt: str) -> list[Reference]:
        """The files that a file of a chain names."""
        if fmt == "qed":
            info = await qedasync.probe(path)
            name = info.backing_file
            return [] if name is None else [Reference(name, "backing", info.backing_format)]
        if fmt != "raw" and fmt not in FOREIGN_FORMATS:
            raise FormatError(f"it is a {fmt} image, for which qemu-nbd is not used")
        return await references(storage, fmt)

    async def _admit(self, one: Reference, path: str, depth: int) -> str:
        """The file that a name leads to, if the policy lets it pass."""
        path_below = os.path.join(os.path.dirname(path), one.name)
        real = await asyncio.to_thread(os.path.realpath, path_below)
        is_plain = bool(one.name) and ":" not in one.name.partition("/")[0]
        request = BackingRequest(one.name, real if is_plain else "", path, depth, one.format)
        if not is_plain or await _ask(self._policy, request) is not True:
            raise BackingRefused(
                f"{path!r} names another file, {one.name!r}, which is not a plain path or not"
                ' allowed; backing="any" allows every file',
                name=one.name,
            )
        if real in self._passed or depth > _MAX_FILES:
            raise BackingError(
                f"{path!r}: the chain comes back to {one.name!r}, or is too long",
                name=one.name,
                errno=errno.ELOOP,
            )
        return path_below

    async def _check_extent(self, one: Reference, path: str, below: str) -> None:
        """Raise for an extent that names files itself; QEMU would follow."""
        storage, found = await self._look(below, None)
        if found == "vmdk" and any(
            ref.role == "extents" for ref in await references(storage, found)
        ):
            raise BackingRefused(f"{path!r}: the extent {one.name!r} names others", name=one.name)
