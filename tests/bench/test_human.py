"""Lines like fio's: the same words in the same places, and numbers as fio shortens them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qedasync.bench.human import fio_lines
from qedasync.bench.numbers import bandwidth, duration, duration_unit, fixed, io_size, short
from tests.bench.test_report import make_report


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7.6, "8"), (9999, "9999"), (10_000, "10.0k"), (10_700, "10.7k"),
        (171_234, "171k"), (999_499, "999k"), (12_345_678, "12.3M"),
    ],
)  # fmt: skip
def test_short_is_four_characters_and_a_letter(value: float, text: str) -> None:
    assert "".join(short(value)) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (3888 << 10, "3888KiB"),
        (65536, "64.0KiB"),
        (4096, "4096B"),
        (16 << 20, "16.0MiB"),
        (0, "0B"),
    ],
)
def test_io_size_is_as_fio_writes_it(size: int, text: str) -> None:
    assert io_size(size) == text


def test_bandwidth_is_in_both_bases() -> None:
    assert bandwidth(43_751_424) == "41.7MiB/s (43.8MB/s)"


def test_fixed_keeps_the_width_where_it_can() -> None:
    assert (fixed(7.8, 5), fixed(126.13, 5), fixed(123456.789, 5)) == (
        " 7.80",
        "126.13",
        "123456.8",
    )


@pytest.mark.parametrize(
    ("least", "mean", "unit"),
    [(300, 900, "nsec"), (300, 5000, "usec"), (2500, 9e6, "usec"), (3e6, 9e6, "msec")],
)
def test_duration_unit_keeps_the_digits(least: float, mean: float, unit: str) -> None:
    assert duration_unit(least, mean)[0] == unit


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0 ns"), (812, "812 ns"), (999.9, "1 us"), (4070, "4.07 us"), (1e9, "1 s")]
)
def test_duration_has_three_digits(ns: float, text: str) -> None:
    assert duration(ns) == text


def shape(lines: list[str]) -> list[str]:
    """What a line is about: its start, without numbers and what differs from run to run."""
    found: list[str] = []
    for line in lines:
        text = re.sub(r"[\d.]+|[kMG]i?B", "#", line)
        text = re.sub(r"\((n|u|m)sec\)", "(T)", text)
        found.append(re.split(r"[=(#]", text)[0].rstrip(" ,"))
    return found


@pytest.mark.skipif(shutil.which("fio") is None, reason="there is no fio here")
def test_human_lines_are_those_of_fio(tmp_path: Path) -> None:
    command = [
        *("fio", "--name=bench", "--filename=disk", "--size=256k", "--rw=randrw", "--bs=4k"),
        *("--ioengine=psync", "--fsync=8"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    theirs = [line for line in shape(done.stdout.splitlines()) if line.strip()]
    report = make_report(flush_interval=8)
    report.result.flushes.record(5_000_000)
    mine = shape(list(fio_lines(report.result, "1")))
    ignored = (
        "fio-",
        "bench: Laying",
        "Starting",
        "Disk stats",
        "  vd",
        "  sd",
        "  nvme",
        "  lat ",
    )
    missing = [line for line in theirs if line not in mine and not line.startswith(ignored)]
    assert missing == []


def test_human_leaves_out_a_direction_that_was_not_run() -> None:
    report = make_report()
    lines = list(fio_lines(report.result, "1"))
    assert [line.split(":")[0] for line in lines if re.match(r"  (read|write|trim):", line)] == [
        "  read",
        "  write",
    ]
    assert not any("TRIM" in line or "fsync" in line for line in lines)
