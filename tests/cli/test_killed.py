"""convert, rebase and commit killed in the middle, as real processes, at many points.

A point is a change to a file that the process is about to make: a write, a cut, a sync, a rename.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import qemu
from tests.helpers.process import ROOT

pytestmark = qemu.needs_qemu_7_2

SCRIPT = """\
import os, signal, sys
left, number = int(sys.argv[1]), getattr(signal, sys.argv[2])
done = 0
def counted(name):
    call = getattr(os, name)
    def wrapper(*arguments, **more):
        global done
        if done == left:
            os.kill(os.getpid(), number)
        done += 1
        return call(*arguments, **more)
    setattr(os, name, wrapper)
for name in ("pwrite", "pwritev", "ftruncate", "fdatasync", "fsync", "replace", "unlink"):
    counted(name)
from qedasync.cli.main import main
code = main(sys.argv[3:])
print("points", done, file=sys.stderr)
raise SystemExit(code)
"""
"""A command that sends itself a signal before its N-th change to a file."""

PARTS = [3, pytest.param(24, marks=pytest.mark.slow)]
"""How many points of a command are tried."""


def command(folder: Path, *words: str, point: int, number: str = "SIGKILL") -> tuple[int, int]:
    """Run it; the exit code, and how many points there were if it got to its end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(point), number, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    found = done.stderr.rpartition("points ")[2]
    return done.returncode, int(found) if found.strip().isdigit() else 0


def build(folder: Path) -> None:
    """A chain of three, each with something of its own."""
    with (folder / "base.raw").open("wb") as file:
        file.truncate(4 << 20)
    qemu.io(folder / "base.raw", "write -P 1 0 2M", options=("-f", "raw"))
    qemu.create(folder / "mid.qed", 6 << 20, cluster_size=4096, backing=("base.raw", "raw"))
    qemu.io(folder / "mid.qed", "write -P 2 100k 300k", "write -z 1M 64k", "write -P 3 5M 9k")
    qemu.create(folder / "top.qed", 8 << 20, cluster_size=16384, backing=("mid.qed", "qed"))
    qemu.io(folder / "top.qed", "write -P 4 200k 900k", "write -P 5 7M 50k", "write -z 3M 32k")
    qemu.create(folder / "other.qed", 3 << 20)
    qemu.io(folder / "other.qed", "write -P 1 0 1M")
    qemu.img("convert", "-O", "raw", folder / "top.qed", folder / "expected.raw")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "originals"
    folder.mkdir()
    build(folder)
    return folder


def copy(originals: Path, folder: Path) -> Path:
    subprocess.run(["cp", "-a", "--sparse=always", originals, folder], check=True)
    return folder


def points_of(total: int, parts: int) -> list[int]:
    """Some points out of ``total``, the first and the last among them."""
    return sorted({(total - 1) * part // (parts - 1) for part in range(parts)})


def reads_as(image: Path, expected: Path) -> bool:
    return qemu.img("compare", image, expected, status=None).returncode == 0


JOBS = {
    "commit": ("commit", "top.qed"),
    "commit, kept": ("commit", "-d", "top.qed"),
    "commit to the base": ("commit", "-b", "base.raw", "top.qed"),
    "rebase": ("rebase", "-b", "other.qed", "-F", "qed", "top.qed"),
    "rebase to nothing": ("rebase", "-b", "", "top.qed"),
    "rebase of the name": ("rebase", "-u", "-b", "./mid.qed", "-F", "qed", "top.qed"),
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("job", JOBS)
def test_job_that_is_killed_leaves_an_image_that_reads_the_same(
    job: str, parts: int, originals: Path, tmp_path: Path
) -> None:
    words = JOBS[job]
    expected = originals / "expected.raw"
    code, total = command(copy(originals, tmp_path / "whole"), *words, point=-1)
    assert code == 0
    for point in points_of(total, parts):
        folder = copy(originals, tmp_path / str(point))
        # How many writes leave as one is a matter of time: there may be a few points less.
        assert command(folder, *words, point=point)[0] in (-signal.SIGKILL, 0), point
        assert reads_as(folder / "top.qed", expected), f"{words} killed at {point}"
        assert qemu.check(folder / "top.qed")["corruptions"] == 0, point
        code, _ = command(folder, *words, point=-1)
        assert code == 0, f"{words} again after a kill at {point}"
        assert reads_as(folder / "top.qed", expected), point


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("old", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("fmt", ["qed", "raw"])
def test_convert_that_is_killed_leaves_nothing_under_the_name(
    fmt: str, old: bool, parts: int, originals: Path, tmp_path: Path
) -> None:
    words = ("convert", "-O", fmt, "top.qed", "x")
    code, total = command(copy(originals, tmp_path / "whole"), *words, point=-1)
    assert code == 0
    for point in points_of(total, parts):
        folder = copy(originals, tmp_path / str(point))
        if old:
            (folder / "x").write_bytes(b"precious")
        ended = command(folder, *words, point=point)[0]
        assert ended in (-signal.SIGKILL, 0), point
        if (folder / "x").exists() and (not old or (folder / "x").read_bytes() != b"precious"):
            assert ended == 0 or point >= total - 2, f"has its name at {point} of {total}"
            assert reads_as(folder / "x", originals / "expected.raw")
        else:
            assert (folder / "x").exists() == old


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize(
    "words",
    [("convert", "-O", "qed", "top.qed", "x"), JOBS["commit"], JOBS["rebase to nothing"]],
)
def test_job_that_is_told_to_stop_tidies_up(
    words: tuple[str, ...], number: str, code: int, originals: Path, tmp_path: Path
) -> None:
    whole, total = command(copy(originals, tmp_path / "whole"), *words, point=-1)
    assert whole == 0
    for point in (0, total // 2):
        folder = copy(originals, tmp_path / str(point))
        ended = command(folder, *words, point=point, number=number)[0]
        assert ended in (0, code), (words, point)  # 0: it was too late to stop
        assert not list(folder.glob(".*")), point
        if ended:
            assert not (folder / "x").exists()
        assert reads_as(folder / "top.qed", originals / "expected.raw"), (words, point)
        assert qemu.check(folder / "top.qed")["corruptions"] == 0
        assert command(folder, *words, point=-1)[0] == 0
