"""An early start: what each verb imports, and what it must not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import qedasync

HEAVY = {
    "aiofiles",
    "argparse",
    "asyncio",
    "ctypes",
    "html",
    "json",
    "rich",
    "ssl",
    "unittest",
    "uvloop",
}


def imported(words: list[str], folder: Path) -> set[str]:
    """The modules that a command has loaded at its end."""
    code = (
        "import sys; from qedasync.cli.main import main; code = main(sys.argv[1:]);"
        "print('\\n', *sys.modules, file=sys.stderr); raise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--version"], ["help"], ["help", "convert"], ["info", "-h"]])
def test_help_and_version_need_no_heavy_module(words: list[str], tmp_path: Path) -> None:
    modules = imported(words, tmp_path)
    assert modules & HEAVY == set()
    assert len(modules) < 130


@pytest.mark.parametrize("words", [["--version"], ["info", "-h"], ["check", "--help"]])
def test_one_verb_is_described_without_data_classes(words: list[str], tmp_path: Path) -> None:
    assert imported(words, tmp_path) & (HEAVY | {"dataclasses", "inspect"}) == set()


def test_version_needs_next_to_nothing(tmp_path: Path) -> None:
    ours = {name for name in imported(["--version"], tmp_path) if name.startswith("qedasync")}
    assert ours <= {
        "qedasync",
        "qedasync.errors",
        "qedasync.cli",
        "qedasync.cli.main",
        "qedasync.cli.options",
        "qedasync.cli.run",
    }


# What no verb needs before it has much to do.
NEVER = {"aiofiles", "argparse", "rich", "unittest", "hashlib"}
LOOP = {"asyncio", "ctypes", "ssl", "uvloop"}
# What only a check, a job on a chain, a server or a benchmark needs.
OTHERS = ("qedasync.check", "qedasync.chain", "qedasync.nbd", "qedasync.bench")
ENGINE = (
    "qedasync.backing",
    "qedasync.engine.core",
    "qedasync.engine.tasks",
    "qedasync.image",
    "qedasync.jobs.crew",
    "qedasync.raw",
    "qedasync.storage.workers",
    "qedasync.waiting",
)


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """A folder with an image, an overlay on it, and a raw disk."""

    async def make() -> None:
        await qedasync.create(tmp_path / "x.qed", "1M")
        await qedasync.create(tmp_path / "top.qed", backing_file="x.qed")

    asyncio.run(make())
    (tmp_path / "x.raw").write_bytes(bytes(512))
    return tmp_path


def of(modules: set[str], packages: tuple[str, ...]) -> set[str]:
    """Those of the modules that are in the packages."""
    return {name for name in modules if f"{name}.".startswith(tuple(f"{p}." for p in packages))}


@pytest.mark.parametrize(
    "words",
    [
        ["x.qed"],
        ["x.raw"],
        ["-f", "raw", "x.qed"],
        ["-U", "x.qed"],
        ["--output=json", "x.qed"],
        ["--backing-chain", "top.qed"],
        ["file:x.qed"],
        ["--image-opts", "driver=qed,file.filename=x.qed"],
        ['json:{"driver":"raw","file":{"filename":"x.raw"}}'],
    ],
)
def test_info_needs_neither_loop_nor_engine(words: list[str], disks: Path) -> None:
    modules = imported(["info", *words], disks)
    assert modules & (NEVER | LOOP) == set()
    assert of(modules, (*OTHERS, *ENGINE, "qedasync.jobs")) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["blkdebug::x.qed"],
        ["--image-opts", "driver=raw,file.driver=qed,file.file.filename=x.qed"],
    ],
)
def test_info_of_what_needs_a_loop_takes_one(words: list[str], disks: Path) -> None:
    modules = imported(["info", *words], disks)
    assert "asyncio" in modules
    assert modules & (NEVER | {"uvloop"}) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["map", "x.qed"],
        ["map", "x.raw"],
        ["map", "--output=json", "-U", "x.qed"],
        ["compare", "x.qed", "x.qed"],
        ["compare", "-p", "-s", "x.raw", "x.raw"],
        ["resize", "x.qed", "+1M"],
        ["resize", "-f", "raw", "x.raw", "+1M"],
        ["measure", "-O", "qed", "--size", "1M"],
        ["measure", "-O", "qed", "x.raw"],
        ["measure", "-O", "raw", "x.qed"],
        ["snapshot", "-l", "x.qed"],
    ],
    ids=" ".join,
)
def test_verb_on_a_plain_image_needs_neither_loop_nor_engine(words: list[str], disks: Path) -> None:
    modules = imported(words, disks)
    assert modules & (NEVER | LOOP) == set()
    assert of(modules, (*OTHERS, *ENGINE)) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "-O", "raw", "x.qed", "new.raw"],
        ["commit", "top.qed"],
        ["rebase", "-f", "qed", "-b", "", "top.qed"],
        ["io", "-c", "quit", "x.qed"],
    ],
    ids=" ".join,
)
def test_job_on_local_files_takes_the_loop_that_loads_sooner(words: list[str], disks: Path) -> None:
    modules = imported(words, disks)
    assert (
        modules & {"aiofiles", "argparse", "rich", "unittest", "uvloop", "json", "tempfile"}
        == set()
    )
    assert of(modules, ("qedasync.nbd", "qedasync.bench")) == set()


def test_new_name_of_a_backing_file_needs_neither_loop_nor_engine(disks: Path) -> None:
    words = ["rebase", "-u", "-f", "qed", "-b", "moved.qed", "-F", "qed", "top.qed"]
    modules = imported(words, disks)
    assert modules & (NEVER | LOOP) == set()
    assert of(modules, ("qedasync.chain.walk", "qedasync.nbd", *ENGINE)) == set()


def test_check_needs_neither_loop_nor_engine(disks: Path) -> None:
    modules = imported(["check", "x.qed"], disks)
    assert modules & (NEVER | LOOP) == set()
    others = ("qedasync.chain", "qedasync.nbd", "qedasync.bench", "qedasync.check.repair")
    assert of(modules, (*others, *ENGINE)) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["map", "top.qed"],
        ["compare", "x.qed", "top.qed"],
        ["check", "-r", "all", "x.qed"],
        ["resize", "top.qed", "+1M"],
        ["resize", "-f", "raw", "--preallocation=falloc", "x.raw", "+1M"],
        ["map", "--image-opts", "driver=raw,offset=512,file.filename=x.qed"],
        ["map", "--image-opts", "driver=qed,file.filename=x.qed,backing.file.filename=x.raw"],
        ["measure", "-O", "qed", "blkdebug::x.qed"],
    ],
    ids=" ".join,
)
def test_verb_on_more_than_a_plain_image_takes_a_plain_loop(words: list[str], disks: Path) -> None:
    modules = imported(words, disks)
    assert "asyncio" in modules
    assert modules & (NEVER | {"uvloop"}) == set()
    assert of(modules, ("qedasync.chain", "qedasync.nbd", "qedasync.bench")) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["-f", "qed", "new.qed", "1M"],
        ["-f", "qed", "-u", "-b", "x.qed", "-F", "qed", "new.qed", "1M"],
        ["new.raw", "1M"],
    ],
    ids=" ".join,
)
def test_create_needs_neither_loop_nor_engine(words: list[str], disks: Path) -> None:
    modules = imported(["create", *words], disks)
    assert modules & (NEVER | LOOP) == set()
    assert of(modules, (*OTHERS, *ENGINE, "qedasync.jobs")) == set()


def test_create_of_an_overlay_takes_a_loop(disks: Path) -> None:
    words = ["create", "-f", "qed", "-b", "x.qed", "-F", "qed", "new.qed"]
    modules = imported(words, disks)
    assert "asyncio" in modules
    assert modules & (NEVER | {"uvloop"}) == set()
