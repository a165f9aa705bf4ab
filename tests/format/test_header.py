"""Header: bytes, flags, every rule of a valid header in QEMU's order, and what create accepts."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.errors import FormatError, HeaderError, RequestError, UnsupportedFeature
from qedasync.format.geometry import Geometry
from qedasync.format.header import (
    DEFAULT_CLUSTER_SIZE,
    DEFAULT_TABLE_SIZE,
    HEADER_BYTES,
    MAX_CLUSTER_SIZE,
    MAX_IMAGE_SIZE,
    Features,
    Header,
    decode_backing_name,
    encode_backing_name,
    new_header,
    usable_file_size,
    validate_create,
    validate_header,
)

KIB, MIB, GIB, TIB, PIB, EIB = (1 << 10 * n for n in range(1, 7))
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)

headers = st.builds(
    Header,
    cluster_size=U32,
    table_size=U32,
    header_size=U32,
    features=U64,
    compat_features=U64,
    autoclear_features=U64,
    l1_table_offset=U64,
    image_size=U64,
    backing_filename_offset=U32,
    backing_filename_size=U32,
)

# What qemu-img 7.2 wrote for a 10 MiB overlay on the raw file base.raw.
OVERLAY = bytes.fromhex(
    "5145 4400 0000 0100 0400 0000 0100 0000 0500 0000 0000 0000 0000 0000 0000 0000"
    "0000 0000 0000 0000 0000 0100 0000 0000 0000 a000 0000 0000 4000 0000 0800 0000"
)

SMALL = new_header(10 * MIB, 4096, 2)
SMALL_FILE = 3 * 4096  # header, two clusters of L1


# bytes


@given(headers)
def test_header_packed_and_parsed_is_the_same(header: Header) -> None:
    data = header.pack()
    assert len(data) == HEADER_BYTES
    assert data[:4] == b"QED\0"
    assert Header.parse(data) == header


@given(st.binary(min_size=60, max_size=60))
def test_header_parsed_and_packed_is_the_same(rest: bytes) -> None:
    assert Header.parse(b"QED\0" + rest).pack() == b"QED\0" + rest


@pytest.mark.parametrize(
    ("name", "offset", "size"),
    [
        ("cluster_size", 4, 4),
        ("table_size", 8, 4),
        ("header_size", 12, 4),
        ("features", 16, 8),
        ("compat_features", 24, 8),
        ("autoclear_features", 32, 8),
        ("l1_table_offset", 40, 8),
        ("image_size", 48, 8),
        ("backing_filename_offset", 56, 4),
        ("backing_filename_size", 60, 4),
    ],
)
def test_header_field_is_little_endian_at_its_offset(name: str, offset: int, size: int) -> None:
    value = int.from_bytes(bytes(range(1, size + 1)), "little")
    empty = Header.parse(b"QED\0")
    data = replace(empty, **{name: value}).pack()
    assert data[offset : offset + size] == bytes(range(1, size + 1))
    assert data[:offset].strip(b"\0") == b"QED"
    assert not data[offset + size :].strip(b"\0")


def test_header_of_an_overlay_made_by_qemu_is_read_and_made_alike() -> None:
    header = Header.parse(OVERLAY + b"base.raw")
    assert header == new_header(10 * MIB, 65536, 4, "base.raw", backing_is_raw=True)
    assert header.pack() == OVERLAY
    assert header.has_backing
    assert header.backing_is_raw
    assert not header.need_check


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_parse_takes_any_buffer(kind: Callable[[bytes], Any]) -> None:
    assert Header.parse(kind(OVERLAY + bytes(448))).image_size == 10 * MIB


def test_parse_of_the_magic_alone_gives_zeroes() -> None:
    header = Header.parse(b"QED\0")
    assert all(getattr(header, field.name) == 0 for field in fields(header))


@pytest.mark.parametrize("data", [b"", b"QE", b"QFI\xfb", b"QED\1" + bytes(60), bytes(64)])
def test_parse_of_another_magic_is_refused(data: bytes) -> None:
    with pytest.raises(HeaderError, match="not a QED image") as caught:
        Header.parse(data)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.field == "magic"
    assert caught.value.value == int.from_bytes(data[:4], "little")


# flags


@pytest.mark.parametrize(
    ("features", "name_size", "has_backing", "is_raw"),
    [
        (0, 8, False, False),
        (1, 8, True, False),
        (1, 0, False, False),
        (4, 8, False, False),
        (5, 8, True, True),
        (5, 0, False, False),
        (7, 8, True, True),
        (2, 8, False, False),
    ],
)
def test_header_backing_flags_depend_on_each_other(
    features: int, name_size: int, has_backing: bool, is_raw: bool
) -> None:
    header = replace(SMALL, features=features, backing_filename_size=name_size)
    assert header.has_backing is has_backing
    assert header.backing_is_raw is is_raw
    assert header.need_check is bool(features & 2)


def test_with_features_sets_and_clears_bits_and_nothing_else() -> None:
    header = replace(SMALL, features=5)
    dirty = header.with_features(set=Features.NEED_CHECK)
    assert dirty == replace(header, features=7)
    assert type(dirty.features) is int
    assert dirty.with_features(clear=Features.NEED_CHECK) == header
    assert header.with_features(set=2, clear=5).features == 2
    assert header.with_features() == header


@given(headers)
def test_unknown_autoclear_is_every_bit(header: Header) -> None:
    assert header.unknown_autoclear == header.autoclear_features


# the size that counts


@pytest.mark.parametrize(
    ("file_size", "expected"),
    [
        (0, 0),
        (1, 0),
        (3584, 0),
        (3585, 4096),  # up to 511 bytes may be missing of the last sector
        (4096, 4096),
        (4097, 4096),
        (8191, 8192),
        (12288 - 512, 8192),
        (12288 - 511, 12288),
    ],
)
def test_usable_file_size_rounds_up_to_sectors_then_down(file_size: int, expected: int) -> None:
    assert usable_file_size(file_size, 4096) == expected


# validation


def test_validate_fresh_image_gives_its_geometry() -> None:
    assert validate_header(SMALL, SMALL_FILE) == Geometry(4096, 2, 1, 4096)


def test_validate_file_that_lacks_511_bytes_is_accepted() -> None:
    validate_header(SMALL, SMALL_FILE - 511)


def fault(header: Header, file_size: int = SMALL_FILE) -> FormatError:
    with pytest.raises(FormatError) as caught:
        validate_header(header, file_size)
    return caught.value


@pytest.mark.parametrize("bit", [3, 4, 31, 32, 63])
def test_validate_unknown_feature_is_unsupported(bit: int) -> None:
    error = fault(replace(SMALL, features=2 | 1 << bit))
    assert isinstance(error, UnsupportedFeature)
    assert error.errno == errno.ENOTSUP
    assert error.value == 1 << bit


@pytest.mark.parametrize("name", ["compat_features", "autoclear_features"])
def test_validate_unknown_optional_feature_is_accepted(name: str) -> None:
    validate_header(replace(SMALL, **{name: 2**64 - 1}), SMALL_FILE)


@pytest.mark.parametrize("features", range(8))
def test_validate_known_features_are_accepted(features: int) -> None:
    validate_header(replace(SMALL, features=features), SMALL_FILE)


def with_l1_at(offset: int) -> dict[str, int]:
    return {"l1_table_offset": offset}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        *(
            ("cluster_size", {"cluster_size": n})
            for n in (0, 1, 2048, 4095, 4097, 12288, 64 * MIB + 1, 128 * MIB, 2**31)
        ),
        *(("table_size", {"table_size": n}) for n in (0, 3, 5, 15, 17, 32, 2**31)),
        *(("image_size", {"image_size": n}) for n in (1, 511, 513, 4 * GIB + 512, 2**64 - 512)),
        *(
            ("l1_table_offset", with_l1_at(n))
            for n in (0, 1, 4096 + 512, 2 * 4096, 3 * 4096, 2**64 - 4096, 2**64 - 1)
        ),
        ("l1_table_offset", {"header_size": 2}),
        ("l1_table_offset", {"header_size": 2**32 - 1}),
        ("header_size", {"header_size": 0}),
        ("header_size", {"header_size": 0, "l1_table_offset": 0}),
        ("backing_filename_offset", {"features": 1, "backing_filename_offset": 4097}),
        (
            "backing_filename_offset",
            {"features": 1, "backing_filename_offset": 64, "backing_filename_size": 4033},
        ),
        (
            "backing_filename_offset",
            {"features": 1, "backing_filename_offset": 2**32 - 1, "backing_filename_size": 1},
        ),
        ("backing_filename_size", {"features": 1, "backing_filename_size": 4096}),
    ],
)
def test_validate_broken_rule_names_field_and_value(field: str, changes: dict[str, int]) -> None:
    header = replace(SMALL, **changes)
    error = fault(header)
    assert isinstance(error, HeaderError)
    assert error.field == field
    assert error.value == getattr(header, field)
    assert error.errno == errno.EINVAL
    assert field in str(error)
    assert str(error.value) in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 0},
        {"image_size": 512},
        {"image_size": 4 * GIB},
        {"features": 1, "backing_filename_offset": 4096},
        {"features": 1, "backing_filename_offset": 0, "backing_filename_size": 16},
        {"features": 1, "backing_filename_offset": 64, "backing_filename_size": 4032},
        {"features": 1, "backing_filename_offset": 1, "backing_filename_size": 4095},
        {"features": 0, "backing_filename_offset": 2**32 - 1, "backing_filename_size": 2**32 - 1},
    ],
)
def test_validate_at_the_limit_is_accepted(changes: dict[str, int]) -> None:
    validate_header(replace(SMALL, **changes), SMALL_FILE)


@pytest.mark.parametrize("file_size", [0, 64, 4096, 8192, SMALL_FILE - 512])
def test_validate_file_shorter_than_l1_is_refused(file_size: int) -> None:
    assert fault(SMALL, file_size).field == "l1_table_offset"


def test_validate_table_size_1_is_accepted() -> None:
    header = new_header(GIB, 4096, 1)
    assert validate_header(header, 2 * 4096).table_entries == 512
    assert fault(header, 4096).field == "l1_table_offset"


def test_validate_l1_far_behind_the_header_is_accepted() -> None:
    header = replace(SMALL, header_size=3, l1_table_offset=7 * 4096)
    assert validate_header(header, 9 * 4096).first_cluster_offset == 3 * 4096


@pytest.mark.parametrize(("extra", "accepted"), [(0, True), (1, False)])
def test_validate_header_of_4_gib_is_too_large(extra: int, accepted: bool) -> None:
    limit = (2**32 - 1) // 4096
    header = replace(SMALL, header_size=limit + extra, l1_table_offset=8 * GIB)
    if accepted:
        validate_header(header, 9 * GIB)
    else:
        assert fault(header, 9 * GIB).field == "header_size"


@pytest.mark.parametrize(
    ("cluster_size", "table_size", "accepted", "refused"),
    [
        (4 * KIB, 2, 4 * GIB, 4 * GIB + 512),
        (64 * KIB, 4, 64 * TIB, 64 * TIB + 512),
        (1 * MIB, 16, 4 * EIB, 4 * EIB + 512),
        (4 * MIB, 2, 4 * EIB, 4 * EIB + 512),
        (2 * MIB, 8, MAX_IMAGE_SIZE, MAX_IMAGE_SIZE + 512),
        (4 * MIB, 4, 0, 512),  # from here on the product does not fit in 64 bits
        (2 * MIB, 16, 0, 512),
        (8 * MIB, 4, 0, 512),
        (32 * MIB, 2, 0, 512),
        (64 * MIB, 16, 0, 512),
    ],
)
def test_validate_image_size_accepts_what_qemu_accepts(
    cluster_size: int, table_size: int, accepted: int, refused: int
) -> None:
    file_size = cluster_size * (1 + table_size)
    validate_header(new_header(accepted, cluster_size, table_size), file_size)
    assert fault(new_header(refused, cluster_size, table_size), file_size).field == "image_size"


@pytest.mark.parametrize("size", [MAX_IMAGE_SIZE + 512, 2**63])
def test_validate_image_size_beyond_what_a_disk_can_have_is_too_big(size: int) -> None:
    error = fault(new_header(size, 2 * MIB, 8), 18 * MIB)
    assert error.errno == errno.EFBIG
    assert error.value == size


def test_validate_reports_the_first_broken_rule_in_qemus_order() -> None:
    # Everything is wrong; each repair brings up the next fault.
    header = Header(3, 3, 0, 9, 0, 0, 1, 2**63 + 1, 2**32 - 1, 2**32 - 1)
    repairs = [
        ("features", {"features": 1}),
        ("cluster_size", {"cluster_size": 2 * MIB}),
        ("table_size", {"table_size": 8}),
        ("image_size", {"image_size": 2**63}),
        ("l1_table_offset", {"l1_table_offset": 2 * MIB}),
        ("header_size", {"header_size": 1}),
        ("backing_filename_offset", {"backing_filename_offset": 0, "backing_filename_size": 4096}),
        ("backing_filename_size", {"backing_filename_size": 4095}),
        ("image_size", {"image_size": MAX_IMAGE_SIZE}),
    ]
    for field, changes in repairs:
        assert fault(header, 18 * MIB).field == field
        header = replace(header, **changes)
    validate_header(header, 18 * MIB)


@given(headers, U64)
def test_validate_of_anything_ends_in_a_format_error_or_a_sound_geometry(
    header: Header, file_size: int
) -> None:
    try:
        geometry = validate_header(header, file_size)
    except FormatError:
        return
    assert geometry.l1_end <= usable_file_size(file_size, geometry.cluster_size)


# names


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"base.raw", "base.raw"),
        (b"base.raw\0old tail", "base.raw"),
        (b"\0", ""),
        (b"", ""),
        ("größe.qed".encode(), "größe.qed"),
        (b"\xff\xfe.img", "\udcff\udcfe.img"),
    ],
)
def test_backing_name_is_cut_at_nul_and_survives_any_bytes(raw: bytes, name: str) -> None:
    assert decode_backing_name(raw) == name
    assert encode_backing_name(name) == raw.partition(b"\0")[0]


@given(st.binary())
def test_backing_name_decoded_and_encoded_is_the_same(raw: bytes) -> None:
    raw = raw.replace(b"\0", b"")
    assert encode_backing_name(decode_backing_name(raw)) == raw


@pytest.mark.parametrize("name", ["a\0b", "\0", "\ud800"])
def test_encode_backing_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="backing file's name"):
        encode_backing_name(name)


# create


@pytest.mark.parametrize(
    ("size", "cluster_size", "table_size", "name"),
    [
        (0, DEFAULT_CLUSTER_SIZE, DEFAULT_TABLE_SIZE, None),
        (512, 4096, 2, None),
        (4 * GIB, 4096, 2, "x"),
        (64 * TIB, 65536, 4, None),
        (MAX_IMAGE_SIZE, 2 * MIB, 8, None),
        (0, MAX_CLUSTER_SIZE, 16, None),
        (0, 4096, 16, "n" * 4032),
        (0, 65536, 4, "n" * 4095),
        (0, 65536, 4, "ö" * 2047),
    ],
)
def test_create_at_the_limit_is_accepted_and_opens(
    size: int, cluster_size: int, table_size: int, name: str | None
) -> None:
    validate_create(size, cluster_size, table_size, name)
    header = new_header(size, cluster_size, table_size, name)
    validate_header(header, cluster_size * (1 + table_size))
    assert header.has_backing is (name is not None)


@pytest.mark.parametrize(
    ("size", "cluster_size", "table_size", "name", "match"),
    [
        (-512, 65536, 4, None, "size is -512"),
        (1, 65536, 4, None, "size is 1;"),
        (1000, 65536, 4, None, "multiple of 512"),
        (64 * TIB + 512, 65536, 4, None, f"at most {64 * TIB}"),
        (2**63, 2 * MIB, 8, None, f"at most {MAX_IMAGE_SIZE}"),
        (512, 4 * MIB, 4, None, "at most 0. Use a smaller"),
        (0, 0, 4, None, "cluster_size is 0"),
        (0, 2048, 4, None, "cluster_size is 2048"),
        (0, 65537, 4, None, "cluster_size is 65537"),
        (0, 128 * MIB, 4, None, "cluster_size"),
        (0, 2**32 + 4096, 4, None, "cluster_size is 4294971392"),
        (0, -4096, 4, None, "cluster_size"),
        (0, 65536, 0, None, "table_size is 0"),
        (0, 65536, 3, None, "table_size is 3"),
        (0, 65536, 32, None, "table_size is 32"),
        (0, 65536, 2**32 + 2, None, "table_size is 4294967298"),
        (0, 65536, 1, None, "table_size is 1; QEMU cannot open"),
        (0, 65536, 4, "", "has 0 bytes"),
        (0, 65536, 4, "a\0b", "NUL"),
        (0, 65536, 4, "n" * 4096, "has 4096 bytes; it must have 1 to 4095"),
        (0, 65536, 4, "ö" * 2048, "has 4096 bytes"),
        (0, 4096, 4, "n" * 4033, "has 4033 bytes; it must have 1 to 4032"),
    ],
)
def test_create_beyond_the_limit_is_refused(
    size: int, cluster_size: int, table_size: int, name: str | None, match: str
) -> None:
    with pytest.raises(RequestError, match=match):
        validate_create(size, cluster_size, table_size, name)


def test_create_with_table_size_1_can_be_forced() -> None:
    validate_create(4 * TIB, 65536, 1, None, force_table_size_1=True)
    with pytest.raises(RequestError, match="at most") as caught:
        validate_create(4 * TIB + 512, 65536, 1, None, force_table_size_1=True)
    assert caught.value.size == 4 * TIB + 512
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("name", "raw", "features"),
    [(None, False, 0), (None, True, 0), ("b", False, 1), ("b", True, 5)],
)
def test_new_header_features_follow_the_backing_file(
    name: str | None, raw: bool, features: int
) -> None:
    header = new_header(512, 4096, 2, name, raw)
    assert header.features == features
    assert type(header.features) is int
    assert header.backing_filename_offset == (64 if name else 0)
    assert header.backing_filename_size == (1 if name else 0)
