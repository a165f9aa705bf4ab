"""Backing files: which may be opened, and how a chain of them becomes one source of bytes.

A name in an image is somebody else's wish: it may point at any file of the host, at a pipe, at
itself, or at an image that goes on so. Every name passes the gate here before anything is opened,
in this order: no URL, the policy's directory, the file is there, no loop, not too deep, the
policy's word, an ordinary file. A relative name starts at the directory of the image that has it.

QED can record one format for a backing file, raw. Without that record the file is looked at for the
magic of an image: an overlay on one could not be opened otherwise. So a raw disk, if it was once
writable and its guest wrote a QED header into it, is taken for an image. What that header names
passes the same gate again, so with "auto" the guest reaches files of the one directory and no
others. Where even these are not to be seen, record the format (``create(...,
backing_format="raw")``) or pass a function. An image of another format is not taken for a raw disk:
it is refused.

URLs and other formats are for others to open: a policy that is a function may answer with a disk.

The files of a chain are opened from the top down, then the images are put together from the bottom
up, when it is known how many share the cache's budget.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, cast

from qedasync.backing_gate import MAX_DEPTH, Gate, Place, broken, explained, foreign
from qedasync.disk import Disk, DiskSource
from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.metadata import read_backing_name, read_header
from qedasync.engine.source import Source
from qedasync.engine.sources import ImageSource, RawSource
from qedasync.errors import BackingRefused
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES
from qedasync.format.header import Header, validate_header
from qedasync.format.magic import HEAD_BYTES, identify
from qedasync.policy import BackingPolicy, BackingRequest, check_policy, local_path
from qedasync.storage.base import Storage
from qedasync.storage.locks import LockRole
from qedasync.storage.workers import in_thread

__all__ = [
    "open_backing",
    "open_new_backing",
    "backing_size",
    "ChainFiles",
]

_MAX_L1_BYTES = 32 << 20  # of a whole chain; 64 images of 64 TiB each need half of it


_Opener: TypeAlias = Callable[..., Awaitable[Storage]]


class ChainFiles(NamedTuple):
    """How the files of a chain are opened.

    Attributes:
        open_storage: opens one, as :func:`qedasync.storage.opener.open_storage` does.
        lock: take QEMU's locks.
        direct: bypass the page cache.
        l2_cache_bytes: budget for L2 tables of an image that is written.
    """

    open_storage: _Opener
    lock: bool = True
    direct: bool = False
    l2_cache_bytes: int = 32 << 20


async def open_backing(
    engine: Engine,
    path: str,
    policy: BackingPolicy,
    *,
    open_storage: _Opener,
    l2_cache_bytes: int,
    lock: bool,
    direct: bool = False,
) -> Source | None:
    """Open the backing file that an image names, and whatever lies below it.

    Args:
        engine: the image. It is not changed: the caller attaches the result.
        path: the image's file name; relative names start at its directory.
        policy: which files may be opened.
        open_storage: opens a file, as :func:`qedasync.storage.opener.open_storage` does.
        l2_cache_bytes: budget of the L2 caches of the chain, all together.
        lock: take QEMU's locks.
        direct: bypass the page cache.

    Returns: the source, owned by the caller; None without a backing file or with policy False.

    Raises:
        BackingRefused: the policy, or our refusal of URLs.
        BackingError: a file is missing, broken or in use; there is a loop, or too long a chain.
        RequestError: that is no policy.

    Cancellation: nothing stays open.
    """
    check_policy(policy)
    if policy is False or engine.backing_name is None:
        return None
    chain = _Chain(policy, open_storage, lock=lock, direct=direct)
    kind: Literal["raw"] | None = "raw" if engine.header.backing_is_raw else None
    return await chain.open(engine.backing_name, kind, path, l2_cache_bytes)


async def open_new_backing(
    name: str,
    kind: Literal["raw", "qed"] | None,
    path: str,
    policy: BackingPolicy,
    *,
    open_storage: _Opener,
    l2_cache_bytes: int,
    lock: bool,
    direct: bool = False,
) -> Source:
    """Open a file that is to become the backing file of the image ``path``, and what lies below.

    The policy is for what lies below: ``name`` itself comes from the caller, who may use any file.

    Args, raises and cancellation: as :func:`open_backing`.
    """
    check_policy(policy)
    chain = _Chain(policy, open_storage, lock=lock, direct=direct, trust_first=True)
    return await chain.open(name, kind, path, l2_cache_bytes)


async def backing_size(
    name: str,
    kind: Literal["raw", "qed"] | None,
    path: str,
    policy: BackingPolicy,
    *,
    open_storage: _Opener,
    lock: bool,
) -> int:
    """The guest-visible bytes of a backing file for a new image ``path``; opens all of its chain.

    The policy is for what lies below: ``name`` itself comes from the caller, who may use any file.

    Raises and cancellation: as :func:`open_backing`.
    """
    chain = _Chain(policy, open_storage, lock=lock, direct=False, trust_first=True)
    source = await chain.open(name, kind, path, 0)
    await source.close()
    return source.size


class _Layer(NamedTuple):
    """An open file of a chain.

    Attributes:
        path: as it was named: the image's directory and the recorded name.
        file: the host's device and file number.
        header: None for a raw file.
        backing_name: what it names in turn.
    """

    request: BackingRequest
    path: str
    file: tuple[int, int]
    storage: Storage
    header: Header | None = None
    backing_name: str | None = None

    def source(self) -> Source:
        """The file as a raw disk; closing it closes the file."""
        return RawSource(self.storage, self.path, file=self.file)


class _Given(NamedTuple):
    """A disk that the policy's function gave, at the bottom of a chain."""

    disk: Disk
    header: None = None
    backing_name: None = None

    def source(self) -> Source:
        return DiskSource(self.disk)


class _Chain:
    """Opens the files below one image.

    Args:
        trust_first: the policy is not asked about the first file.
    """

    def __init__(
        self,
        policy: BackingPolicy,
        open_storage: _Opener,
        *,
        lock: bool,
        direct: bool,
        trust_first: bool = False,
    ) -> None:
        self._gate = Gate(policy, trust_first=trust_first)
        self._follow = policy is not False
        self._open_storage = open_storage
        self._lock = lock
        self._direct = direct
        self._l1_bytes = 0

    async def open(
        self,
        name: str,
        kind: Literal["raw", "qed"] | None,
        image_path: str,
        l2_cache_bytes: int,
    ) -> Source:
        """The source for the file ``name``; closes everything again on failure."""
        top = await in_thread(partial(Place.look, image_path, image_path))
        self._gate.pass_by(top)
        async with AsyncExitStack() as opened:
            layers = [await self._open_layer(name, kind, image_path, 1, opened)]
            while self._follow and (below := layers[-1].backing_name) is not None:
                above, depth = cast(_Layer, layers[-1]), len(layers) + 1
                assert above.header is not None
                kind = "raw" if above.header.backing_is_raw else None
                layers.append(await self._open_layer(below, kind, above.path, depth, opened))
            source = await _join(layers, l2_cache_bytes, opened)
            opened.pop_all()
        return source

    async def _open_layer(
        self,
        name: str,
        kind: Literal["raw", "qed"] | None,
        image_path: str,
        depth: int,
        opened: AsyncExitStack,
    ) -> _Layer | _Given:
        """Let one name through the gate and open the file."""
        path = local_path(name, image_path)
        if path is None:
            url = BackingRequest(name, "", image_path, depth, kind)
            return await self._open_url(url, opened)
        place = await in_thread(partial(Place.look, path, image_path))
        request = BackingRequest(name, place.path, image_path, depth, kind)
        file = self._gate.admit(request, place)
        if not self._gate.trusts(request) and (given := await self._ask(request, opened)):
            return given
        self._gate.check_kind(request, place)
        with explained(request):
            found = kind or await self._probe(request.path)
            if found in ("raw", "qed"):
                return await self._open_file(request, path, file, found == "raw", opened)
        request = request._replace(format=found)
        given = await self._ask(request, opened)
        if given is None:
            with explained(request):
                raise foreign(found)
        return given

    async def _open_url(self, request: BackingRequest, opened: AsyncExitStack) -> _Given:
        given = await self._ask(request, opened) if request.depth <= MAX_DEPTH else None
        if given is None:
            raise BackingRefused(
                f"{request.image_path!r}: the backing file {request.name!r} is not a plain path;"
                " URLs and other protocols are opened only by a function that is passed as backing"
                " and answers with a disk. Record a path instead, or pass backing=False to open the"
                " image without it",
                name=request.name,
            )
        return given

    async def _ask(self, request: BackingRequest, opened: AsyncExitStack) -> _Given | None:
        """The disk that the policy's function gives for a name, if it gives one."""
        disk = await self._gate.ask(request)
        if disk is None:
            return None
        opened.push_async_callback(disk.close)
        return _Given(disk)

    async def _open_file(
        self,
        request: BackingRequest,
        path: str,
        file: tuple[int, int],
        raw: bool,
        opened: AsyncExitStack,
    ) -> _Layer:
        role = LockRole.SHARED_READ if raw else LockRole.READ_ONLY
        storage = await self._open_storage(
            request.path,
            writable=False,
            direct=self._direct,
            lock=role if self._lock else None,
        )
        opened.push_async_callback(storage.close)
        if raw:
            return _Layer(request, path, file, storage)
        header = await read_header(storage)
        geometry = validate_header(header, storage.size)
        self._l1_bytes += geometry.l1_entries_used(header.image_size) * ENTRY_BYTES
        if self._l1_bytes > _MAX_L1_BYTES:
            raise broken(request, "the chain's tables are too large", errno.ENOMEM)
        name = await read_backing_name(storage, header)
        return _Layer(request, path, file, storage, header, name)

    async def _probe(self, path: str) -> str:
        """What the file is; without locks, for which of them it needs follows from the answer."""
        storage = await self._open_storage(path, writable=False, lock=None)
        try:
            head = bytearray(HEAD_BYTES)
            await storage.read_into([head], 0, Event.HEADER_LOAD)
        finally:
            await storage.close()
        return identify(head)


async def _join(
    layers: list[_Layer | _Given], l2_cache_bytes: int, opened: AsyncExitStack
) -> Source:
    """Make sources of open files, the lowest first; each owns the one below it."""
    images = sum(layer.header is not None for layer in layers)
    options = EngineOptions(l2_cache_bytes=l2_cache_bytes // max(1, images))
    source: Source | None = None
    for layer in reversed(layers):
        if layer.header is None:
            source = layer.source()
        else:
            with explained(layer.request):
                engine = await Engine.open(layer.storage, options, layer.path)
            engine.attach(source)
            source = ImageSource(engine, layer.request.name, file=layer.file)
        opened.push_async_callback(source.close)
    assert source is not None
    return source
