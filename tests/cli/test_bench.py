"""``qedasync bench`` as a user meets it: reports, permission to write, errors, interrupts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync.bench import Run
from qedasync.cli.main import main

SIZE = 4 << 20
needs_mkfs = pytest.mark.skipif(
    shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None,
    reason="mkfs.ext4 is not installed",
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 4 MiB, a quarter of it written."""
    path = tmp_path / "disk.qed"

    async def make() -> None:
        await qedasync.create(path, SIZE)
        async with qedasync.open(path, "r+") as disk:
            await disk.pwrite(os.urandom(SIZE // 4), SIZE // 2)

    asyncio.run(make())
    return path


Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run ``qedasync bench --output json`` with further words; answers the report."""

    def run(*words: object, code: int = 0) -> dict[str, Any]:
        assert main(["bench", "--output", "json", *map(str, words)]) == code
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_bench_given_image_is_only_read(image: Path, bench: Bench) -> None:
    before = digest(image)
    report = bench(image, "--number", 500)
    assert report["jobs"][0]["job options"]["rw"] == "randread"
    assert report["jobs"][0]["read"]["total_ios"] == 500
    assert report["jobs"][0]["write"]["total_ios"] == 0
    assert digest(image) == before


@pytest.mark.parametrize("rw", ["randrw", "randwrite", "write", "rw"])
def test_bench_writes_without_permission_are_refused(
    image: Path, rw: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(image)
    assert main(["bench", str(image), "--rw", rw, "--number", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"qedasync: --rw {rw} would overwrite data in '{image}'; add --wr")
    assert err.count("\n") == 1
    assert digest(image) == before


@pytest.mark.parametrize("rw", ["randread", "read"])
def test_bench_reading_with_permission_to_write_still_only_reads(
    image: Path, rw: str, bench: Bench
) -> None:
    before = digest(image)
    bench(image, "--rw", rw, "--write", "--number", 100)
    assert digest(image) == before


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("rw", ["randrw", "randwrite", "write", "rw"])
def test_bench_permitted_writes_are_verified(image: Path, rw: str, loop: str, bench: Bench) -> None:
    before = digest(image)
    report = bench(
        *(image, "--rw", rw, "--write", "--verify", "--number", 1500, "--loop", loop),
        *("--flush-interval", 100, "--bs", "16k"),
    )
    job = report["jobs"][0]
    assert job["write"]["total_ios"] > 0
    assert job["sync"]["total_ios"] == job["write"]["total_ios"] // 100
    assert report["qedasync"]["verified"] > 0
    assert report["qedasync"]["loop"] == loop
    assert report["qedasync"]["stats"]["clusters_allocated"] > 0
    assert digest(image) != before


def test_bench_verify_finds_unsound_tables(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with image.open("r+b") as file:
        file.seek(65536)
        l2_table = int.from_bytes(file.read(8), "little")
        file.seek(l2_table + 8 * (SIZE // 2 // 65536))
        entry = file.read(8)
        file.seek(l2_table)
        file.write(entry)  # the image's first cluster shares its bytes with another one
    words = [str(image), "--verify", "--number", "10"]
    assert main(["bench", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"qedasync: verify failed: after the run, the check of '{image}' finds 1 corruptions"
        " and 0 tables that cannot be read\n"
    )


def test_bench_writes_stay_in_their_part(image: Path, bench: Bench) -> None:
    before = asyncio.run(content(image))
    bench(image, "--write", "--rw", "write", "--offset", "2M", "--size", "1M", "--number", 256)
    after = asyncio.run(content(image))
    assert after[: 2 << 20] == before[: 2 << 20]
    assert after[3 << 20 :] == before[3 << 20 :]
    written = after[2 << 20 : 3 << 20]
    assert written == written[:4096] * 256
    assert written != before[2 << 20 : 3 << 20]


async def content(path: Path) -> bytes:
    async with qedasync.open(path) as disk:
        return bytes(await disk.pread(disk.size, 0))


@pytest.mark.parametrize("storage", ["auto", "posix", "aiofiles", "memory"])
@pytest.mark.parametrize("cache", ["writeback", "writethrough", "unsafe"])
def test_bench_any_storage_and_cache_runs(
    image: Path, storage: str, cache: str, bench: Bench
) -> None:
    report = bench(
        *(image, "--write", "--rw", "randrw", "--storage", storage, "--cache", cache),
        *("--number", 60, "--verify"),
    )
    assert (report["qedasync"]["storage"], report["qedasync"]["cache"]) == (storage, cache)


@needs_mkfs
def test_bench_without_image_makes_a_real_one_and_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["bench", "--size", "16M", "--number", "2000", "--verify"]) == 0
    out, err = capsys.readouterr()
    assert "ext4 made by mkfs.ext4 -d" in out
    assert "rw=randrw, bs=(R) 4096B-4096B" in out
    assert "verified" in out
    assert "the image is checked: tables clean, content equal to its source" in err
    assert list(tmp_path.iterdir()) == []


def test_bench_keep_leaves_the_image_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    report = bench("--size", "8M", "--number", 100, "--keep")
    (kept,) = tmp_path.glob("*/bench.qed")
    assert report["qedasync"]["image"].startswith(f"{kept}: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iodepth", "0"], "the queue depth must be at least 1"),
        (["--bs", "0"], "the block size must be at least 1"),
        (["--bs", "nonsense"], "--bs: 'nonsense' is not a size"),
        (["--rw", "readtrim"], "--rw is 'readtrim'; it must be one of read, write, "),
        (["--nonsense"], "unrecognized option '--nonsense'"),
        (["--offset", "4M"], "0 bytes have no room for a block of 4096"),
        (["--size", "5M"], "offset 0 and size 5242880 reach beyond the image of 4194304 bytes"),
    ],
)
def test_bench_impossible_option_is_one_line(
    image: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(image), *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"qedasync: {message}")
    assert err.count("\n") == 1


def test_bench_missing_image_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tmp_path / "none.qed")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("qedasync: ")
    assert "none.qed" in err
    assert err.count("\n") == 1


def test_bench_something_else_than_an_image_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no image" * 1000)
    assert main(["bench", "--iodepth", "1", "--format", "qed", str(tmp_path / "text")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("qedasync: Could not open ")
    assert err.count("\n") == 1


def test_bench_uvloop_missing_is_one_line(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert main(["bench", str(image), "--loop", "uvloop"]) == 1
    assert capsys.readouterr().err == ("qedasync: uvloop is not installed; choose --loop asyncio\n")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_bench_interrupted_prints_the_results_so_far(
    image: Path, loop: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Run._operate

    async def interrupted_later(run: Run) -> None:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
        await begin(run)

    monkeypatch.setattr(Run, "_operate", interrupted_later)
    words = [image, "--write", "--rw", "randrw", "--runtime", 50, "--loop", loop]
    report = bench(*words, code=130)
    assert report["qedasync"]["interrupted"] is True
    assert report["jobs"][0]["job_runtime"] < 50_000
    assert "NEED_CHECK" not in str(asyncio.run(features(image)))


async def features(path: Path) -> qedasync.Features:
    async with qedasync.open(path) as disk:
        return disk.features


def test_bench_interrupted_while_it_makes_the_image_removes_it(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "qedasync", "bench", "--size", "64M"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("making an image")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_bench_progress_without_a_terminal_is_plain_lines(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qedasync.cli.progress._EVERY", 0)
    assert main(["bench", str(image), "--runtime", "0.7"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all("% " in line and "read " in line and " IOPS" in line for line in lines)


def test_bench_progress_on_a_terminal_is_a_live_line(image: Path) -> None:
    terminal, its_end = os.openpty()
    command = [sys.executable, "-m", "qedasync", "bench", str(image), "--runtime", "0.7"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    try:
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=its_end)
        shown = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(its_end)
    assert done.returncode == 0
    assert " IOPS" in shown
    assert "\x1b[2K" in shown  # the line is drawn over, and gone in the end
    assert done.stdout.startswith(b"bench: (g=0): rw=randread, ")
