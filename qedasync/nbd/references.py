"""Which other files an image of another format names: its backing file, its data, its extents.

Whoever made the image chose those names. They are read here, so that they can pass the caller's
policy before another program opens anything: that program is told of every file, and looks for
none by itself. So what is read here must be what QEMU would read.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Literal

import qedasync
from qedasync.errors import FormatError

__all__ = ["Reference", "references"]

_SECTOR = 512
_DESCRIPTOR = 20 * _SECTOR  # bytes of a vmdk's text that QEMU looks at for a parent
_MAX_DESCRIPTOR = 1 << 20
_MAX_NAME = 1023
_MAX_HEADER = 2 << 20  # bytes of a qcow2 header with its extensions: a cluster at most

_QCOW = struct.Struct(">IIQIIQ")  # magic, version, backing offset and size, mtime or bits, size
_QCOW2_FEATURES, _QCOW2_LENGTH = struct.Struct(">Q"), struct.Struct(">I")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT, _DATA_FILE = 0xE2792ACA, 0x44415441
_EXTERNAL_DATA = 1 << 2

_VMDK4 = struct.Struct("<4sIIQQQQ")  # magic, version, flags, capacity, grain, text's place and size
_EXTENT = re.compile(rb'^[ \t]*RW[ \t]+\d+[ \t]+\w+[ \t]+"([^"\n]*)"', re.MULTILINE)
_PARENT = re.compile(rb'parentFileNameHint..([^"]*)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that an image names.

    Attributes:
        name: as it is recorded.
        role: the name of QEMU's option for the file, or ``"extents"``.
        format: that is recorded for it, or None.
    """

    name: str
    role: Literal["backing", "data-file", "extents"]
    format: str | None = None


async def references(storage: qedasync.Storage, fmt: str) -> list[Reference]:
    """The files that the image in a storage needs beside its own.

    Args:
        fmt: the image's format.

    Raises:
        FormatError: the header makes no sense.
        StorageError: it cannot be read.
    """
    if fmt in ("qcow", "qcow2"):
        return await _in_qcow(storage, fmt)
    if fmt == "vmdk":
        return await _in_vmdk(storage)
    if fmt == "vpc":
        await _refuse_differencing(storage)
    return []  # vdi, vhdx: QEMU opens none that have a parent; parallels: has none


async def _read(storage: qedasync.Storage, offset: int, length: int) -> bytes:
    data = bytearray(length)
    await storage.read_into([data], offset)
    return bytes(data)


def _broken(what: str, fmt: str) -> FormatError:
    return FormatError(f"the {fmt} image's {what} makes no sense", field="header")


# ---------------------------------------------------------------------------- qcow, qcow2


async def _in_qcow(storage: qedasync.Storage, fmt: str) -> list[Reference]:
    head = await _read(storage, 0, 104)
    _, version, offset, length, bits, _ = _QCOW.unpack_from(head)
    found = []
    kinds: dict[int, bytes] = {}
    if fmt == "qcow2":
        if not 9 <= bits <= 21:
            raise _broken("cluster size", fmt)
        kinds = await _extensions(storage, head, version, offset or 1 << bits)
        if version > 2 and _QCOW2_FEATURES.unpack_from(head, 72)[0] & _EXTERNAL_DATA:
            name = _text(kinds.get(_DATA_FILE, b""))
            found.append(Reference(name, "data-file", "raw"))
    if offset and length:
        if length > _MAX_NAME:
            raise _broken("backing file name", fmt)
        recorded = _text(kinds.get(_BACKING_FORMAT, b"")) or None
        name = _text(await _read(storage, offset, length))
        found.append(Reference(name, "backing", recorded))
    return found


async def _extensions(
    storage: qedasync.Storage, head: bytes, version: int, end: int
) -> dict[int, bytes]:
    """What a qcow2 header has behind it, by its kind; of two of a kind the last counts."""
    start = _QCOW2_LENGTH.unpack_from(head, 100)[0] if version > 2 else 72
    if not 72 <= start <= end <= _MAX_HEADER:
        raise _broken("length", "qcow2")
    area = await _read(storage, start, end - start)
    found, at = {}, 0
    while at + _EXTENSION.size <= len(area):
        kind, length = _EXTENSION.unpack_from(area, at)
        at += _EXTENSION.size
        if not kind:
            break
        if length > len(area) - at:
            raise _broken("extension", "qcow2")
        found[kind] = area[at : at + length]
        at += -(-length // 8) * 8
    return found


def _text(raw: bytes) -> str:
    """A name as C reads it."""
    return os.fsdecode(raw.partition(b"\0")[0])


# ----------------------------------------------------------------------------- vmdk, vpc


async def _in_vmdk(storage: qedasync.Storage) -> list[Reference]:
    head = await _read(storage, 0, _SECTOR)
    magic, _, _, capacity, _, place, size = _VMDK4.unpack_from(head)
    if magic not in (b"KDMV", b"COWD"):
        whole = await _read(storage, 0, min(storage.size, _MAX_DESCRIPTOR))
        return _extents(whole) + _parents(whole[:_DESCRIPTOR])
    found = _parents(await _read(storage, _SECTOR, _DESCRIPTOR))
    if magic == b"KDMV" and not capacity:
        length = min(size * _SECTOR, _MAX_DESCRIPTOR)
        found += _extents(await _read(storage, place * _SECTOR, length))
    return found


def _extents(text: bytes) -> list[Reference]:
    """The files that a descriptor lists; it may list none, and is no image then."""
    return [Reference(_text(name), "extents") for name in _EXTENT.findall(text)] or [
        Reference("", "extents")
    ]


def _parents(text: bytes) -> list[Reference]:
    found = _PARENT.search(text.partition(b"\0")[0])
    return [] if found is None else [Reference(_text(found[1]), "backing", "vmdk")]


async def _refuse_differencing(storage: qedasync.Storage) -> None:
    """Raise for a vpc that holds what its parent lacks: QEMU reads it as if it stood alone."""
    head = await _read(storage, 0, _SECTOR)
    if head.startswith(b"conectix") and head[60:64] == struct.pack(">I", 4):
        raise FormatError(
            "it is a differencing vpc image, which nobody here can read", field="type"
        )
