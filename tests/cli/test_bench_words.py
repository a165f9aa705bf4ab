"""``qedasync bench`` in fio's words: what each does, the page, signals, raw files and options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qedasync.bench import Pattern, Workload
from qedasync.cli.bench.options import VERB, with_verify_value
from qedasync.cli.bench.workload import workload
from qedasync.cli.options import ToolError, parse
from tests.cli.differential import Outcome, call
from tests.helpers.process import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A QED image and a raw file of 1 MiB."""
    assert call("create -q -f qed -o cluster_size=4k,table_size=2 a.qed 1M", tmp_path).code == 0
    (tmp_path / "b.raw").write_bytes(os.urandom(1 << 20))
    return tmp_path


def asked(words: str) -> Workload:
    return workload(parse(VERB, with_verify_value(words.split())))


def report(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return found


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", {"rw": Pattern.RANDRW, "runtime": 5.0, "number": None, "depth": 64}),
        ("--rw readwrite", {"rw": Pattern.RW}),
        ("--rw=trim", {"rw": Pattern.TRIM}),
        ("--bs 8k", {"block_size": 8192, "write_size": None}),
        ("--bs 4k,8k", {"block_size": 4096, "write_size": 8192}),
        ("--bs ,8k", {"block_size": 4096, "write_size": 8192}),
        ("--bs 4k,8k,16k", {"block_size": 4096, "write_size": 8192}),
        ("--bs 4k,8k,16k --rw trim", {"write_size": 16384}),
        ("--runtime 3", {"runtime": 3.0}),
        ("--runtime 200ms", {"runtime": 0.2}),
        ("--runtime 2m --time_based", {"runtime": 120.0}),
        ("--runtime=1.5h", {"runtime": 5400.0}),
        ("--number_ios 7", {"runtime": None, "number": 7}),
        ("--number 7 --runtime 1s", {"runtime": 1.0, "number": 7}),
        ("--rwmixread 0", {"read_percent": 0}),
        ("--iodepth 3 --numjobs 2", {"depth": 3, "jobs": 2, "in_flight": 6}),
        ("--verify", {"verify": True}),
        ("--verify crc32c", {"verify": True}),
        ("--verify=md5", {"verify": True}),
        ("--offset 1M --size 2M --seed 9", {"offset": 1 << 20, "size": 2 << 20, "seed": 9}),
        ("--flush-interval 8 --pattern 0xab", {"flush_interval": 8, "fill": 0xAB}),
        ("-c 5 -d 6 -s 512 -o 4k", {"number": 5, "depth": 6, "block_size": 512, "offset": 4096}),
    ],
)
def test_words_mean_what_they_do_in_fio(words: str, wanted: dict[str, Any]) -> None:
    found = asked(words)
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rw sideways", "--rw is 'sideways'; it must be one of read, "),
        ("--bs 1k,2k,3k,4k", "--bs: '1k,2k,3k,4k' has more sizes"),
        ("--bs x", "--bs: 'x' is not a size"),
        ("--runtime soon", "--runtime: 'soon' is no time"),
        ("--runtime 3y", "--runtime: '3y' is no time"),
        ("--iodepth x", "Invalid iodepth specified"),
        ("--number_ios -3", "Invalid number of operations specified"),
        ("--verify=hope", "--verify is 'hope'"),
        ("--pattern 256", "Invalid pattern byte specified"),
        ("-S 4k --rw read", "-S goes with qemu-img's options"),
        ("-i posix --rw read", "Invalid aio option: posix"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: str, message: str) -> None:
    with pytest.raises(ToolError) as caught:
        asked(words)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--verify a.qed", ["--verify=stamp", "a.qed"]),
        ("--verify crc32c a.qed", ["--verify=crc32c", "a.qed"]),
        ("--verify crc32c md5", ["--verify=crc32c", "md5"]),
        ("--verify", ["--verify=stamp"]),
        ("--verify=md5 crc32c", ["--verify=md5", "crc32c"]),
        ("a -- --verify crc32c", ["a", "--", "--verify", "crc32c"]),
    ],
)
def test_verify_takes_a_value_only_if_it_is_one(words: str, found: list[str]) -> None:
    assert with_verify_value(words.split()) == found


# ---------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", ["a.qed", "b.raw"])
@pytest.mark.parametrize("rw", ["write", "randrw", "readwrite", "trim", "randtrim", "read"])
def test_bench_any_kind_runs_on_both_formats(folder: Path, name: str, rw: str) -> None:
    words = f"bench {name} --write --rw {rw} --number_ios 300 --iodepth 4 --numjobs 2 --output json"
    found = report(call(words, folder))
    job = found["jobs"][0]
    total = sum(job[kind]["total_ios"] for kind in ("read", "write", "trim"))
    assert total == 600
    assert (job["trim"]["total_ios"] > 0) == ("trim" in rw)
    assert found["qedasync"]["format"] == name.partition(".")[2]


@pytest.mark.parametrize("rw", ["write", "randwrite", "trim", "randtrim", "rw", "readwrite"])
def test_bench_given_image_is_never_changed_without_a_word(folder: Path, rw: str) -> None:
    before = (folder / "b.raw").read_bytes()
    ours = call(f"bench b.raw --rw {rw} --number_ios 10", folder)
    assert (ours.code, ours.out) == (1, "")
    assert "add --write" in ours.err
    assert (folder / "b.raw").read_bytes() == before


def test_bench_trim_leaves_zeroes(folder: Path) -> None:
    words = "bench b.raw --write --rw trim --bs 64k --number_ios 8"
    assert call(words, folder).code == 0
    content = (folder / "b.raw").read_bytes()
    assert content[: 512 << 10] == bytes(512 << 10)
    assert content[512 << 10 :].count(0) < 4096


def test_bench_pattern_is_what_is_written(folder: Path) -> None:
    words = "bench b.raw --write --rw write --number_ios 4 --pattern 0x5a"
    assert call(words, folder).code == 0
    assert (folder / "b.raw").read_bytes()[: 4 * 4096] == b"\x5a" * 4 * 4096


@pytest.mark.parametrize("name", ["a.qed", "b.raw"])
def test_bench_verify_writes_then_reads_it_all(folder: Path, name: str) -> None:
    words = f"bench {name} --write --rw write --number_ios 256 --verify crc32c --output-format=json"
    assert report(call(words, folder))["qedasync"]["verified"] == 256


def test_bench_image_opts_open_what_they_say(folder: Path) -> None:
    options = "driver=qed,file.driver=file,file.filename=a.qed"
    words = f"bench --image-opts {options} --rw read --number_ios 5 --output json"
    assert report(call(words, folder))["qedasync"]["format"] == "qed"


def test_bench_format_raw_reads_the_file_itself(folder: Path) -> None:
    found = report(call("bench -f raw a.qed --rw read --number_ios 5 --output json", folder))
    assert found["qedasync"]["format"] == "raw"
    assert found["qedasync"]["cluster_size"] is None


def test_bench_json_tells_of_both_sizes(folder: Path) -> None:
    words = "bench a.qed --write --rw rw --bs 4k,16k --number_ios 50 --output json"
    job = report(call(words, folder))["jobs"][0]
    assert job["job options"]["bs"] == "4096,16384"
    assert job["read"]["io_bytes"] == job["read"]["total_ios"] * 4096
    assert job["write"]["io_bytes"] == job["write"]["total_ios"] * 16384


def test_bench_quiet_shows_no_progress(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qedasync.cli.progress._EVERY", 0)
    monkeypatch.setattr("qedasync.bench.runner._PROGRESS", 0)
    assert call("bench a.qed --rw read --number_ios 2000", folder).err != ""
    assert call("bench a.qed -q --rw read --number_ios 2000", folder).err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_bench_signal_ends_it_with_a_report(folder: Path, loop: str, number: int) -> None:
    words = ["bench", "a.qed", "--runtime", "60", "--loop", loop, "--output", "json"]
    with subprocess.Popen(
        [sys.executable, "-m", "qedasync", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert b"IOPS" in process.stderr.readline()  # a line of progress: it runs
        process.send_signal(number)
        found = json.loads(process.stdout.read())
    assert process.returncode == 128 + number
    assert found["qedasync"]["interrupted"] is True
    assert found["jobs"][0]["read"]["total_ios"] > 0


# ---------------------------------------------------------------------------- page


def test_bench_html_is_written_beside_the_report(folder: Path) -> None:
    ours = call("bench a.qed --write --rw randrw --number_ios 500 --html r.html", folder)
    assert ours.code == 0
    assert "read: IOPS=" in ours.out
    page = (folder / "r.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.endswith("</html>\n")
    assert page.count("<polyline") == 4
    assert "qedasync bench a.qed --write --rw randrw" in page
    assert {path.name for path in folder.iterdir()} == {"a.qed", "b.raw", "r.html"}


def test_bench_html_of_a_failed_run_is_not_there(folder: Path) -> None:
    (folder / "r.html").write_text("the one before")
    ours = call("bench a.qed --offset 9M --html r.html", folder)
    assert (ours.code, ours.err.count("\n")) == (1, 1)
    assert "Could not write" not in ours.err
    assert (folder / "r.html").read_text() == "the one before"
    assert {path.name for path in folder.iterdir()} == {"a.qed", "b.raw", "r.html"}


@pytest.mark.parametrize(
    ("name", "why"), [("none/r.html", "No such file or directory"), (".", "Is a directory")]
)
def test_bench_html_that_cannot_be_is_known_before_the_run(
    folder: Path, name: str, why: str
) -> None:
    ours = call(["bench", "a.qed", "--runtime", "1000", "--html", name], folder)
    assert ours == Outcome(1, "", f"qedasync: Could not write '{name}': {why}\n")


def test_bench_html_through_a_link_keeps_the_link(folder: Path) -> None:
    (folder / "link.html").symlink_to("real.html")
    assert call("bench a.qed --rw read --number_ios 5 --html link.html", folder).code == 0
    assert (folder / "link.html").is_symlink()
    assert (folder / "real.html").read_text("utf-8").startswith("<!DOCTYPE")


def test_bench_html_may_be_a_device(folder: Path) -> None:
    assert call("bench a.qed --rw read --number_ios 5 --html /dev/null", folder).code == 0
    assert not Path("/dev/null").is_file()
