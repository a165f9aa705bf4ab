"""Numbers, options and reports by themselves."""

from __future__ import annotations

import pytest

from qedasync.cli.io.driver_options import split_options, with_name
from qedasync.cli.io.failure import Failed, Misused
from qedasync.cli.io.flags import take_flags
from qedasync.cli.io.numbers import byte, integer, size, sizes
from qedasync.cli.io.report import Report, dump, size_text
from qedasync.cli.options import ToolError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("010", 10),
        ("0x10", 16),
        ("0x1b", 27),
        ("+5", 5),
        ("3b", 3),
        ("64k", 65536),
        ("1.5K", 1536),
        ("2M", 2 << 20),
        ("7E", 7 << 60),
        ("1.", 1),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_size_of_number_is_bytes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", ".5k", "1e3", "1kb", "0x", "0x1.8k", "1 "])
def test_size_of_no_number_is_refused(text: str) -> None:
    with pytest.raises(Failed, match="non-numeric argument"):
        size(text)


@pytest.mark.parametrize("text", ["8E", "9223372036854775808", "0x8000000000000000", "1" * 30])
def test_size_too_large_is_refused(text: str) -> None:
    with pytest.raises(Failed, match="too large"):
        size(text)


def test_sizes_too_long_together_are_refused() -> None:
    assert sizes(["1k", "2"]) == [1024, 2]
    with pytest.raises(Failed, match="total number of bytes"):
        sizes(["1G", "1G"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("010", 8), ("0x1F", 31), ("-3", -3), ("+3", 3), ("08", None), ("5x", None)],
)
def test_integer_is_read_as_in_c(text: str, value: int | None) -> None:
    assert integer(text) == value


@pytest.mark.parametrize("text", ["256", "-1", "x", "0x100"])
def test_byte_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(Failed, match="not a valid pattern byte"):
        byte(text)


def test_flags_mix_with_names_until_two_dashes() -> None:
    flags = take_flags(["read", "0", "-qP7", "-P", "8", "512", "--", "-v"], "qv", {"P": byte})
    assert flags.names == ["0", "512", "-v"]
    assert flags.get("P") == 8
    assert "q" in flags
    assert "v" not in flags
    assert flags.order == "qPP"


def test_flags_unknown_or_without_value_are_misuse() -> None:
    with pytest.raises(Misused, match="read: invalid option -- 'x'"):
        take_flags(["read", "-qx"], "q")
    with pytest.raises(Misused, match="read: option requires an argument -- 'P'"):
        take_flags(["read", "-P"], "q", {"P": byte})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (3.298122, "3.298122 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.500 KiB"),
        (5 << 20, "5 MiB"),
        (1 << 62, "4 EiB"),
    ],
)
def test_size_text_in_largest_unit(value: float, text: str) -> None:
    assert size_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "00.00 sec"), (1.239, "01.23 sec"), (61.5, "1:01.50"), (3723.25, "1:02:03.25")],
)
def test_report_shows_time(seconds: float, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Report("read", 0, 512, seconds).show()
    assert f"512 bytes, 1 ops; {text} (" in capsys.readouterr().out


def test_report_for_machines_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Report("wrote", 0, 512, 0.25).show(machine=True)
    assert capsys.readouterr().out == "512,1,0:00:00.25,2048.000,4.000\n"


def test_dump_shows_letters_and_digits(capsys: pytest.CaptureFixture[str]) -> None:
    dump(b"aZ9_\xe9" + bytes(12), 510)
    assert capsys.readouterr().out == (
        f"000001fe:  61 5a 39 5f e9{' 00' * 11}  aZ9.............\n0000020e:  00  .\n"
    )


def test_driver_options_are_split_and_joined() -> None:
    assert split_options("driver=qed,file.filename=a,,b,noread-only,x") == {
        "driver": "qed",
        "file.filename": "a,b",
        "read-only": "off",
        "x": "on",
    }
    assert with_name("a=b", "x,y") == "a=b,file.filename=x,,y"
    assert with_name("a=b", "blkdebug:c:d") == (
        "a=b,file.driver=blkdebug,file.x-image=d,file.config=c"
    )
    with pytest.raises(ToolError, match="Can't specify 'file'"):
        with_name("file.filename=a", "b")
