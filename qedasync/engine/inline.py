"""What finishes inside the caller: reads, views and writes that need not wait for anything.

:func:`bind_start` is their neighbour: it begins what somebody then has to wait for.

Each is a function with the image's constants in its closure, for loading an attribute on these
paths costs as much as any other step of them. Any argument is safe: what is out of range is not
done either, and nothing is said of why. None of them ever suspends, none takes a lock, and each
counts what it does (:mod:`qedasync.engine.budget`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

from qedasync.engine.budget import SMALL, Budget
from qedasync.engine.buffers import zero
from qedasync.engine.source import Source
from qedasync.engine.stats import Stats
from qedasync.engine.tables import Tables
from qedasync.engine.views import FilePages
from qedasync.errors import FormatError
from qedasync.format.cluster import ClusterKind, Lookup
from qedasync.format.geometry import SLICE_ENTRIES, Geometry
from qedasync.storage.base import ZERO_CHUNK, ReadBuffers, Started, Storage

__all__ = [
    "Guest",
    "StartRead",
    "TryRead",
    "TryUnmapped",
    "TryView",
    "TryWrite",
    "bind_below",
    "bind_copy",
    "bind_read",
    "bind_start",
    "bind_unmapped",
    "bind_view",
    "bind_write",
]

TryRead: TypeAlias = Callable[[int, int], bytearray | None]
"""``try_read(length, pos)``: the bytes, or None."""

StartRead: TypeAlias = Callable[[int, int], Started | None]
"""``start_read(length, pos)``: the read under way, or None."""

TryUnmapped: TypeAlias = Callable[[ReadBuffers, int, int], bool]
"""``try_unmapped(buffers, pos, length)``: whether they have been filled."""

TryView: TypeAlias = Callable[[int, int], memoryview | None]
"""``try_view(length, pos)``: the bytes where they are, or None."""

TryWrite: TypeAlias = Callable[[bytes | bytearray | memoryview, int, int], bool]
"""``try_write(data, pos, length)``: whether all of it has been written."""

_INDEX_MASK = SLICE_ENTRIES - 1
_WRITE_COST = 2  # reads; it takes about twice as long as one


class Guest(Protocol):
    """What changes of an image while it is open.

    Attributes:
        image_size: guest bytes.
        backing: what unallocated areas come from, or None for zeroes.
        may_write_inline: whether anything may be written without asking anybody.
    """

    image_size: int
    backing: Source | None
    may_write_inline: bool


@runtime_checkable
class Quick(Protocol):
    """What a storage may have beside the protocol: the same in fewer steps."""

    def try_read_one(self, length: int, offset: int) -> bytearray | None:
        """As ``try_read_into``, into a new buffer."""
        ...

    def try_write_one(self, data: bytes | bytearray | memoryview, offset: int, length: int) -> bool:
        """As ``try_write``, of one buffer."""
        ...


@runtime_checkable
class Starts(Protocol):
    """What a storage may have beside the protocol: reads under way without a coroutine."""

    def start_read(self, length: int, offset: int) -> Started | None:
        """Begin to read bytes that lie in the file; None if this is not the way."""
        ...


class _OneBuffer:
    """The steps of :class:`Quick` for a storage that has only the protocol's."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def try_read_one(self, length: int, offset: int) -> bytearray | None:
        data = bytearray(length)
        return data if self._storage.try_read_into((data,), offset) else None

    def try_write_one(self, data: bytes | bytearray | memoryview, offset: int, length: int) -> bool:
        return self._storage.try_write((data,), offset)


def quick(storage: Storage) -> Quick:
    """The quickest way into a storage."""
    return storage if isinstance(storage, Quick) else _OneBuffer(storage)


_Slices: TypeAlias = Mapping[int, "array[int]"]


def bind_read(
    guest: Guest,
    geometry: Geometry,
    young: _Slices,
    storage: Storage,
    budget: Budget,
    below: TryRead,
    try_unmapped: TryUnmapped,
) -> TryRead:
    """Make ``try_read`` for an image whose sound slices are in ``young``.

    Args:
        below: what :func:`bind_below` made for the same image; here for what is not mapped.
    """
    slice_shift, cluster_bits = geometry.slice_shift, geometry.cluster_bits
    cluster_mask, cluster_size = geometry.cluster_mask, geometry.cluster_size
    index_mask, small, try_read_one = _INDEX_MASK, SMALL, quick(storage).try_read_one

    def try_read(length: int, pos: int) -> bytearray | None:
        if budget.reads < budget.limit and pos + length <= guest.image_size and length > 0:
            inside = pos & cluster_mask
            if inside + length <= cluster_size:
                try:
                    entry = young[pos >> slice_shift][(pos >> cluster_bits) & index_mask]
                except KeyError:  # not loaded, or there is no table; a negative position has none
                    entry = 0
                if entry > 1:
                    data = try_read_one(length, entry + inside)
                    if data is None:
                        return None
                elif entry == 1:
                    data = bytearray(length)
                else:
                    data = below(length, pos)
                    if data is None:
                        data = bytearray(length)
                        if not try_unmapped((data,), pos, length):
                            return None
                budget.reads += 1
                if length > small:
                    budget.limit -= length // small
                return data
        return None

    return try_read


def bind_below(guest: Guest, geometry: Geometry, tables: Tables, storage: Storage) -> TryRead:
    """Make the ``try_read`` of an image as a backing file: it counts nothing.

    It answers for what is in one cluster, and has nothing loaded; the rest goes the general way.
    """
    slice_shift, cluster_bits = geometry.slice_shift, geometry.cluster_bits
    cluster_mask, cluster_size = geometry.cluster_mask, geometry.cluster_size
    index_mask, l1_shift = _INDEX_MASK, geometry.l1_shift
    slice_at, try_read_one = tables.cache.young.get, quick(storage).try_read_one

    def try_read(length: int, pos: int) -> bytearray | None:
        inside = pos & cluster_mask
        if inside + length > cluster_size or not 0 <= pos <= guest.image_size - length:
            return None
        entries = slice_at(pos >> slice_shift)
        if entries is not None:
            entry = entries[(pos >> cluster_bits) & index_mask]
            if entry > 1:
                return try_read_one(length, entry + inside)
        else:
            index, l1, entry = pos >> l1_shift, tables.l1, 0
            if index < len(l1) and l1[index]:  # there is a table, not loaded
                return None
        backing = guest.backing
        if entry or backing is None:
            return bytearray(length)
        data = backing.try_read_one(length, pos)
        return bytearray(length) if data is None and pos >= backing.size else data

    return try_read


def bind_copy(
    guest: Guest,
    geometry: Geometry,
    young: _Slices,
    file: FilePages,
    budget: Budget,
    read: TryRead,
) -> TryRead:
    """Make ``try_read`` for an image whose file is mapped; ``read`` reads what is not resident.

    What is resident is copied, which takes half as long as having the kernel do it.
    """
    slice_shift, cluster_bits = geometry.slice_shift, geometry.cluster_bits
    cluster_mask, unit = geometry.cluster_mask, min(geometry.cluster_size, file.window)
    unit_mask, window_bits = unit - 1, file.window.bit_length() - 1
    index_mask, resident, bytes_of_file = _INDEX_MASK, file.resident, file.view

    def try_read(length: int, pos: int) -> bytearray | None:
        entries = young.get(pos >> slice_shift)
        if entries is None or (pos & unit_mask) + length > unit:
            return read(length, pos)
        entry = entries[(pos >> cluster_bits) & index_mask]
        offset = entry + (pos & cluster_mask)
        if entry > 1 and offset >> window_bits in resident:
            if budget.reads < budget.limit and pos + length <= guest.image_size and length > 0:
                budget.reads += 1
                return bytearray(bytes_of_file[offset : offset + length])
            return None
        data = read(length, pos)
        if data is not None and entry > 1:
            file.consider(offset)
        return data

    return try_read


def bind_start(geometry: Geometry, young: _Slices, storage: Storage) -> StartRead:
    """Make ``start_read``: for a range inside the image that is in one cluster with data.

    It counts nothing, and asks nobody whether it may.
    """
    slice_shift, cluster_bits = geometry.slice_shift, geometry.cluster_bits
    cluster_mask, cluster_size = geometry.cluster_mask, geometry.cluster_size
    if not isinstance(storage, Starts):
        return lambda length, pos: None
    index_mask, start = _INDEX_MASK, storage.start_read

    def start_read(length: int, pos: int) -> Started | None:
        entries = young.get(pos >> slice_shift)
        if entries is not None:
            inside = pos & cluster_mask
            entry = entries[(pos >> cluster_bits) & index_mask]
            if entry > 1 and inside + length <= cluster_size:
                return start(length, entry + inside)
        return None

    return start_read


def bind_unmapped(guest: Guest, tables: Tables) -> TryUnmapped:
    """Make ``try_unmapped``: zeroes, or what the backing file has, where nothing is mapped.

    It counts nothing: that is for the image on top, whose request it is.
    """

    def try_unmapped(buffers: ReadBuffers, pos: int, length: int) -> bool:
        if pos < 0:
            return False
        try:
            found = tables.lookup(pos, length)
        except FormatError:
            return False
        if type(found) is not Lookup or found.length < length or found.kind is ClusterKind.FOUND:
            return False
        backing = guest.backing
        if found.kind is ClusterKind.ZERO or backing is None or pos >= backing.size:
            zero(buffers)
        elif pos + length > backing.size or not backing.try_read_into(buffers, pos):
            return False
        return True

    return try_unmapped


def bind_view(
    guest: Guest, geometry: Geometry, young: _Slices, file: FilePages, budget: Budget
) -> TryView:
    """Make ``try_view``: of ranges in one cluster, and in one window of ``file``.

    A window is resident only as a whole, so what is in one is in the file.
    """
    slice_shift, cluster_bits = geometry.slice_shift, geometry.cluster_bits
    cluster_mask, unit = geometry.cluster_mask, min(geometry.cluster_size, file.window)
    unit_mask, window_bits = unit - 1, file.window.bit_length() - 1
    index_mask, resident, bytes_of_file = _INDEX_MASK, file.resident, file.view
    zeroes = memoryview(ZERO_CHUNK)

    def try_view(length: int, pos: int) -> memoryview | None:
        if budget.reads < budget.limit and pos + length <= guest.image_size and length > 0:
            try:
                entries = young[pos >> slice_shift]
            except KeyError:
                return None
            if (pos & unit_mask) + length <= unit:
                entry = entries[(pos >> cluster_bits) & index_mask]
                if entry > 1:
                    offset = entry + (pos & cluster_mask)
                    if offset >> window_bits in resident:
                        budget.reads += 1
                        return bytes_of_file[offset : offset + length]
                elif entry == 1 or guest.backing is None:
                    budget.reads += 1
                    return zeroes[:length]
        return None

    return try_view


def bind_write(
    guest: Guest,
    geometry: Geometry,
    young: _Slices,
    storage: Storage,
    budget: Budget,
    stats: Stats,
) -> TryWrite:
    """Make ``try_write``: in place, in one cluster, if nobody has to hear of it."""
    slice_shift, cluster_bits = geometry.slice_shift, geometry.cluster_bits
    cluster_mask, cluster_size = geometry.cluster_mask, geometry.cluster_size
    index_mask, small, try_write_one = _INDEX_MASK, SMALL, quick(storage).try_write_one

    def try_write(data: bytes | bytearray | memoryview, pos: int, length: int) -> bool:
        if budget.reads < budget.limit and pos + length <= guest.image_size and length > 0:
            entries = young.get(pos >> slice_shift)
            if entries is not None and guest.may_write_inline:
                entry = entries[(pos >> cluster_bits) & index_mask]
                inside = pos & cluster_mask
                if (
                    entry > 1
                    and inside + length <= cluster_size
                    and try_write_one(data, entry + inside, length)
                ):
                    budget.limit -= _WRITE_COST
                    if length > small:
                        budget.limit -= length // small
                    stats.writes += 1
                    stats.write_bytes += length
                    return True
        return False

    return try_write
