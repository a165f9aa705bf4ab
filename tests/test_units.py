"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.errors import RequestError
from qedasync.units import parse_size
from tests.helpers import qemu


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("0512", 512),
        ("512b", 512),
        ("512B", 512),
        ("0x1000", 4096),
        ("0X1e", 30),
        ("64k", 65536),
        ("64K", 65536),
        ("1m", 1 << 20),
        ("10G", 10 << 30),
        ("2t", 2 << 40),
        ("1P", 1 << 50),
        ("1e", 1 << 60),
        ("1.5G", 3 << 29),
        ("0.25k", 256),
        ("1.1k", 1126),
        ("10MiB", 10 << 20),
        ("10 KiB", 10 << 10),
        ("10 k", 10 << 10),
        (" 7 \n", 7),
    ],
)
def test_parse_size_text_is_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "k",
        "-1",
        "+1",
        "1.5",
        "1.5b",
        "1.",
        ".5k",
        "10GB",
        "10kb",
        "10B iB",
        "10iB",
        "10kiBs",
        "1 0",
        "1_000",
        "1e3",
        "0x",
        "0x1k",
        "0x-1",
        "0x10000000000000000",
        "1,5G",
        "inf",
        "nan",
        "٣",
        "²",
        "1\x00",
        "9" * 21,
        "9" * 5000,
        "0." + "9" * 21 + "k",
    ],
)
def test_parse_size_other_text_is_refused_and_shown(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_size(text)
    assert repr(text.strip()) in str(caught.value)


@pytest.mark.parametrize("value", [True, 1.0, None, b"1", [1]])
def test_parse_size_other_type_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match="size"):
        parse_size(value)  # type: ignore[arg-type]


def test_parse_size_negative_number_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        parse_size(-1)
    assert caught.value.size == -1


@given(st.integers(0, 1 << 70))
def test_parse_size_number_is_itself(size: int) -> None:
    assert parse_size(size) == size


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from("kMGTPE"))
def test_parse_size_fraction_is_exact_and_rounded_down(whole: int, part: int, unit: str) -> None:
    one = parse_size(f"1{unit}")
    assert parse_size(f"{whole}.{part:03}{unit}") == (whole * 1000 + part) * one // 1000


@pytest.mark.parametrize("text", ["1.1k", "0x1000", "3b", "1.999M", "64K"])
@qemu.needs_qemu
def test_parse_size_agrees_with_qemu_img(tmp_path: object, text: str) -> None:
    said = qemu.img("create", "-f", "raw", f"{tmp_path}/disk", text).stdout
    assert f"size={parse_size(text)}" in said.split()
