"""Images for the quirk tests: laid down byte by byte, with whatever tables a test wants."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import qedasync
from qedasync.format.header import Header, new_header
from qedasync.storage.base import Storage
from qedasync.storage.memory import SparseBytes

KIB = 1024
MIB = 1024 * KIB
CLUSTER = 4 * KIB

__all__ = ["CLUSTER", "KIB", "MIB", "header_of", "image", "opened", "tables_at", "write_file"]


def image(
    size: int,
    *,
    cluster_size: int = CLUSTER,
    table_size: int = 2,
    l1: Mapping[int, int] | None = None,
    l2: Mapping[int, Mapping[int, int]] | None = None,
    data: Mapping[int, bytes] | None = None,
    file_size: int = 0,
    **fields: Any,
) -> SparseBytes:
    """An image file.

    Args:
        l1: entries by index.
        l2: the tables by file offset: entries by index.
        data: bytes by file offset.
        file_size: the least length of the file.
        fields: header fields that are to be other than in a new image.
    """
    header = replace(new_header(size, cluster_size, table_size), **fields)
    table_bytes = cluster_size * table_size
    content = SparseBytes(header.pack())
    content.resize(max(file_size, header.l1_table_offset + table_bytes))
    for offset, entries in {header.l1_table_offset: l1 or {}, **(l2 or {})}.items():
        content.resize(max(content.size, offset + table_bytes))
        for index, entry in entries.items():
            content.write(struct.pack("<Q", entry), offset + 8 * index)
    for offset, piece in (data or {}).items():
        content.write(piece, offset)
    return content


def tables_at(cluster_size: int = CLUSTER, table_size: int = 2) -> int:
    """Where the first cluster behind L1 is in an image of :func:`image`."""
    return cluster_size * (1 + table_size)


def write_file(path: Path, content: SparseBytes) -> Path:
    """The image as a file; what is a hole in memory is one on disk."""
    with path.open("wb") as file:
        offset = content.next_data(0)
        while offset < content.size:
            piece = bytearray(min(64 * KIB - offset % (64 * KIB), content.size - offset))
            content.read_into(piece, offset)
            file.seek(offset)
            file.write(piece)
            offset = content.next_data(offset + len(piece))
        file.truncate(content.size)
    return path


def opened(
    storage: Storage, mode: Literal["r", "r+"] = "r+", **options: Any
) -> AbstractAsyncContextManager[qedasync.Image]:
    """The image in a storage, to be entered."""
    return qedasync.open("quirk.qed", mode, storage=storage, **options)


def header_of(content: bytes | Path) -> Header:
    """The header of a file or of its bytes."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return Header.parse(file.read(64))
    return Header.parse(content[:64])
