"""The 64-byte header: its fields, the limits of the format, and what makes a header valid.

``Header`` says what is on disk, believed or not; :func:`validate_header` decides whether an image
with this header can be used and gives its :class:`~qedasync.format.geometry.Geometry`. The order of
the checks and their error numbers are QEMU's (block/qed.c: bdrv_qed_do_open), so both programs give
the same reason for the same damage.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import astuple, dataclass, replace
from enum import IntFlag

from qedasync.errors import HeaderError, RequestError, UnsupportedFeature
from qedasync.format.geometry import Geometry

__all__ = [
    "Header",
    "Features",
    "validate_header",
    "validate_create",
    "new_header",
    "usable_file_size",
    "whole_sectors",
    "decode_backing_name",
    "encode_backing_name",
    "QED_MAGIC",
    "HEADER_BYTES",
    "MIN_CLUSTER_SIZE",
    "MAX_CLUSTER_SIZE",
    "DEFAULT_CLUSTER_SIZE",
    "MIN_TABLE_SIZE",
    "MAX_TABLE_SIZE",
    "DEFAULT_TABLE_SIZE",
    "MAX_IMAGE_SIZE",
    "MAX_BACKING_NAME",
    "FEATURE_MASK",
    "COMPAT_FEATURE_MASK",
    "AUTOCLEAR_FEATURE_MASK",
]

QED_MAGIC = 0x00444551  # "QED\0"
HEADER_BYTES = 64
SECTOR_BYTES = 512

MIN_CLUSTER_SIZE = 4096
MAX_CLUSTER_SIZE = 64 << 20
DEFAULT_CLUSTER_SIZE = 65536

MIN_TABLE_SIZE = 1
MAX_TABLE_SIZE = 16
DEFAULT_TABLE_SIZE = 4

MAX_IMAGE_SIZE = 2**63 - 2**30
"""Bytes; QEMU opens nothing larger, whatever the format could map."""

MAX_BACKING_NAME = 4095
"""Bytes of a backing file's name."""


class Features(IntFlag):
    """Bits of ``Header.features``: a program must know all that are set to open the image."""

    BACKING_FILE = 1
    NEED_CHECK = 2
    BACKING_FORMAT_NO_PROBE = 4


FEATURE_MASK = 7
COMPAT_FEATURE_MASK = 0
AUTOCLEAR_FEATURE_MASK = 0

_LAYOUT = struct.Struct("<IIIIQQQQQII")


@dataclass(frozen=True, slots=True)
class Header:
    """The header's fields as they are on disk, the magic aside.

    Attributes:
        cluster_size: bytes.
        table_size: clusters per table.
        header_size: clusters before the first regular one.
        features: bits one must know to open the image (:class:`Features`).
        compat_features: bits one may ignore.
        autoclear_features: bits one clears before writing if one does not know them.
        l1_table_offset: file offset of L1.
        image_size: bytes the guest sees.
        backing_filename_offset: file offset of the backing file's name.
        backing_filename_size: bytes of the name, no terminator.
    """

    cluster_size: int
    table_size: int
    header_size: int
    features: int
    compat_features: int
    autoclear_features: int
    l1_table_offset: int
    image_size: int
    backing_filename_offset: int
    backing_filename_size: int

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Header:
        """The header at the start of ``data``; what is missing of 64 bytes counts as zeroes.

        Raises:
            HeaderError: the magic is wrong. Nothing else is looked at.
        """
        raw = bytes(data[:HEADER_BYTES]).ljust(HEADER_BYTES, b"\0")
        magic, *fields = _LAYOUT.unpack(raw)
        if magic != QED_MAGIC:
            raise HeaderError(
                f"not a QED image: it starts with {raw[:4]!r} where QED has {b'QED' + bytes(1)!r}."
                " Is this another format, or a raw image?",
                field="magic",
                value=magic,
            )
        return cls(*fields)

    def pack(self) -> bytes:
        """The 64 bytes on disk."""
        return _LAYOUT.pack(QED_MAGIC, *astuple(self))

    @property
    def has_backing(self) -> bool:
        """Whether a backing file is named; an empty name is none."""
        return bool(self.features & Features.BACKING_FILE) and self.backing_filename_size > 0

    @property
    def backing_is_raw(self) -> bool:
        """Whether the backing file is raw and must not be probed; means nothing without one."""
        return self.has_backing and bool(self.features & Features.BACKING_FORMAT_NO_PROBE)

    @property
    def need_check(self) -> bool:
        """Whether the tables may be inconsistent."""
        return bool(self.features & Features.NEED_CHECK)

    @property
    def unknown_autoclear(self) -> int:
        """The autoclear bits to clear before the first write."""
        return self.autoclear_features & ~AUTOCLEAR_FEATURE_MASK

    def with_features(self, set: int = 0, clear: int = 0) -> Header:
        """This header with feature bits cleared, then set."""
        return replace(self, features=int(self.features & ~clear | set))


def whole_sectors(size: int) -> int:
    """``size`` rounded up to 512 bytes."""
    return -(-size // SECTOR_BYTES) * SECTOR_BYTES


def usable_file_size(file_size: int, cluster_size: int) -> int:
    """Bytes of the file that count: rounded up to 512, then down to a cluster.

    A last sector cut short is padded; a partial cluster is not part of the image, and the next
    allocation starts at it.
    """
    return whole_sectors(file_size) // cluster_size * cluster_size


def validate_header(header: Header, file_size: int) -> Geometry:
    """Whether an image with this header in a file of ``file_size`` bytes can be used.

    Differs from QEMU: images with ``table_size`` 1 are accepted, as the format allows them.

    Raises:
        UnsupportedFeature: an unknown feature bit.
        HeaderError: a rule is broken; ``errno`` is QEMU's for it.
    """
    unknown = header.features & ~FEATURE_MASK
    if unknown:
        raise UnsupportedFeature(
            f"unknown feature bits {unknown:#x}; known are {FEATURE_MASK:#x}."
            " A newer program wrote this image, or the header is damaged.",
            value=unknown,
        )
    _check_power_of_two(header, "cluster_size", MIN_CLUSTER_SIZE, MAX_CLUSTER_SIZE)
    _check_power_of_two(header, "table_size", MIN_TABLE_SIZE, MAX_TABLE_SIZE)
    geometry = Geometry.of(header)
    _check_image_size(header, geometry)
    _check_l1(header, geometry, usable_file_size(file_size, header.cluster_size))
    _check_header_size(header)
    _check_backing_name(header, geometry)
    if header.image_size > MAX_IMAGE_SIZE:
        # Differs from QEMU: a size of exactly 2**63 opens there as a disk of 0 bytes.
        raise _fault(header, "image_size", f"at most {MAX_IMAGE_SIZE}", errno.EFBIG)
    return geometry


def _fault(header: Header, field: str, rule: str, number: int = errno.EINVAL) -> HeaderError:
    value: int = getattr(header, field)
    text = f"{field} is {value}; it must be {rule}. The header is damaged or was made by mistake."
    return HeaderError(text, errno=number, field=field, value=value)


def _is_power_of_two(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0


def _check_power_of_two(header: Header, field: str, low: int, high: int) -> None:
    if not _is_power_of_two(getattr(header, field), low, high):
        raise _fault(header, field, f"a power of two from {low} to {high}")


def _check_image_size(header: Header, geometry: Geometry) -> None:
    limit = geometry.max_image_size
    if header.image_size % SECTOR_BYTES or header.image_size > limit:
        raise _fault(
            header,
            "image_size",
            f"a multiple of {SECTOR_BYTES} and at most {limit}"
            f" (cluster_size {geometry.cluster_size}, table_size {geometry.table_size})",
        )


def _check_l1(header: Header, geometry: Geometry, end_of_file: int) -> None:
    """L1 lies behind the header and whole in the file; so then does the header."""
    first, last = geometry.first_cluster_offset, end_of_file - geometry.table_bytes
    offset = header.l1_table_offset
    if offset & geometry.cluster_mask or not first <= offset <= last:
        where = f"from {first} to {last}" if first <= last else f"behind {first} in a longer file"
        raise _fault(
            header,
            "l1_table_offset",
            f"a multiple of {geometry.cluster_size} {where}"
            f" (header_size {header.header_size}, {end_of_file} usable bytes in the file);"
            " perhaps the file was cut short",
        )


def _check_header_size(header: Header) -> None:
    """Differs from QEMU: 0 is refused, it lets L1 and data lie on top of the header."""
    limit = (2**32 - 1) // header.cluster_size
    if not 1 <= header.header_size <= limit:
        raise _fault(header, "header_size", f"from 1 to {limit} clusters")


def _check_backing_name(header: Header, geometry: Geometry) -> None:
    if not header.features & Features.BACKING_FILE:
        return
    room = geometry.first_cluster_offset - header.backing_filename_size
    if header.backing_filename_offset > room:
        raise _fault(
            header,
            "backing_filename_offset",
            f"such that the name's {header.backing_filename_size} bytes end within the header,"
            f" {geometry.first_cluster_offset} bytes",
        )
    if header.backing_filename_size > MAX_BACKING_NAME:
        raise _fault(header, "backing_filename_size", f"at most {MAX_BACKING_NAME}")


def decode_backing_name(raw: bytes) -> str:
    """The backing file's name; ends at a NUL; bytes that are not UTF-8 survive as surrogates."""
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def encode_backing_name(name: str) -> bytes:
    """The bytes to store for ``name``; the inverse of :func:`decode_backing_name`.

    Raises:
        RequestError: the name has a NUL (it would be cut there) or is no file name's text.
    """
    if "\0" in name:
        raise RequestError(f"the backing file's name {name!r} has a NUL; no file name may")
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise RequestError(f"the backing file's name {name!r} is not text: {error}") from error


def validate_create(
    size: int,
    cluster_size: int,
    table_size: int,
    backing_name: str | None,
    *,
    force_table_size_1: bool = False,
) -> None:
    """Whether an image like this can be made; to be asked before a file is touched.

    Differs from QEMU, which empties the file first, cuts the sizes to 32 bits and does not look at
    the name's length, so that L1 overwrites a long name.

    Args:
        size: bytes; a multiple of 512, 0 is allowed.
        force_table_size_1: allow ``table_size`` 1, which QEMU 7.2 makes but cannot open.

    Raises:
        RequestError: no.
    """
    for name, value, low, high in (
        ("cluster_size", cluster_size, MIN_CLUSTER_SIZE, MAX_CLUSTER_SIZE),
        ("table_size", table_size, MIN_TABLE_SIZE, MAX_TABLE_SIZE),
    ):
        if not _is_power_of_two(value, low, high):
            raise RequestError(f"{name} is {value}; it must be a power of two from {low} to {high}")
    if table_size == 1 and not force_table_size_1:
        raise RequestError(
            "table_size is 1; QEMU cannot open such an image. Use 2 or more, or force it"
        )
    _validate_create_size(size, Geometry(cluster_size, table_size, 1, cluster_size))
    if backing_name is not None:
        _validate_create_name(backing_name, cluster_size)


def _validate_create_size(size: int, geometry: Geometry) -> None:
    if size < 0 or size % SECTOR_BYTES:
        raise RequestError(
            f"size is {size}; it must be a multiple of {SECTOR_BYTES}, 0 or more", size=size
        )
    limit = min(geometry.max_image_size, MAX_IMAGE_SIZE)
    if size > limit:
        hint = "a smaller" if geometry.max_image_size == 0 else "a larger"
        raise RequestError(
            f"size is {size}; with cluster_size {geometry.cluster_size} and table_size"
            f" {geometry.table_size} it can be at most {limit}."
            + (f" Use {hint} cluster_size or table_size." if limit < MAX_IMAGE_SIZE else ""),
            size=size,
            errno=errno.EFBIG,
        )


def _validate_create_name(name: str, cluster_size: int) -> None:
    length = len(encode_backing_name(name))
    limit = min(cluster_size - HEADER_BYTES, MAX_BACKING_NAME)
    if not 1 <= length <= limit:
        raise RequestError(
            f"the backing file's name has {length} bytes; it must have 1 to {limit}"
            f" with cluster_size {cluster_size}"
        )


def new_header(
    size: int,
    cluster_size: int,
    table_size: int,
    backing_name: str | None = None,
    backing_is_raw: bool = False,
) -> Header:
    """The header of a new, empty image, byte for byte as qemu-img makes it.

    L1 follows at ``cluster_size``; the name, if any, at 64. The arguments are believed:
    :func:`validate_create` checks them.
    """
    features = 0
    name = encode_backing_name(backing_name) if backing_name else b""
    if name:
        features = int(Features.BACKING_FILE)
        if backing_is_raw:
            features |= Features.BACKING_FORMAT_NO_PROBE
    return Header(
        cluster_size=cluster_size,
        table_size=table_size,
        header_size=1,
        features=int(features),
        compat_features=0,
        autoclear_features=0,
        l1_table_offset=cluster_size,
        image_size=size,
        backing_filename_offset=HEADER_BYTES if name else 0,
        backing_filename_size=len(name),
    )
