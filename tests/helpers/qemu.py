"""The real tools: qemu-img, qemu-io, qemu-nbd, mkfs.ext4, e2fsck. A test skips where one is absent.

Two programs never write an image at once: everything here runs while we have it closed, or is
expected to be refused.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.process import Talk

__all__ = [
    "Result",
    "check",
    "compare",
    "convert",
    "create",
    "e2fsck",
    "hold",
    "img",
    "io",
    "map_runs",
    "mkfs_ext4",
    "needs_qemu",
    "needs_qemu_7_2",
    "phantom_leaks",
    "run",
    "through_nbd",
]

Result = subprocess.CompletedProcess[str]

_PROMPT = b"qemu-io> "
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # where mkfs and fsck are


@functools.cache
def _find(tool: str) -> str | None:
    return shutil.which(tool, path=_PATH)


def _tool(tool: str) -> str:
    found = _find(tool)
    if found is None:
        pytest.skip(f"there is no {tool} here")
    return found


@functools.cache
def _version() -> str:
    found = _find("qemu-img")
    if found is None or _find("qemu-io") is None:
        return ""
    said = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout
    return said.split()[2]


needs_qemu = pytest.mark.skipif(not _version(), reason="there is no qemu-img or qemu-io here")

needs_qemu_7_2 = pytest.mark.skipif(
    not _version().startswith("7.2."),
    reason=f"shows what QEMU 7.2 does; here is {_version() or 'none'}",
)


def run(tool: str, *arguments: str | Path, status: int | None = 0) -> Result:
    """Run a tool; fail the test unless it ends with ``status`` (None: any will do)."""
    command = [_tool(tool), *map(str, arguments)]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    if status is not None and result.returncode != status:
        said = f"{result.stdout}{result.stderr}"
        pytest.fail(f"{' '.join(command)}\nended with {result.returncode}, said:\n{said}")
    return result


def img(*arguments: str | Path, status: int | None = 0) -> Result:
    """``qemu-img`` with these arguments."""
    return run("qemu-img", *arguments, status=status)


def io(
    image: str | Path,
    *commands: str,
    options: Sequence[str] = ("-f", "qed", "-t", "writeback"),
    status: int | None = 0,
) -> str:
    """Run ``qemu-io`` commands on an image; what it said."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    result = run("qemu-io", *options, *arguments, image, status=status)
    return result.stdout + result.stderr


def hold(image: Path, *options: str) -> Talk:
    """A qemu-io that has the image open; ``ask`` gives it commands.

    Raises:
        Ended: it could not open the image.
    """
    command: list[str | Path] = [_tool("qemu-io"), "-f", "qed", "-t", "writeback", *options, image]
    return Talk(command, _PROMPT)


def create(
    image: Path,
    size: int,
    *,
    cluster_size: int = 65536,
    table_size: int = 4,
    backing: tuple[str, str] | None = None,
) -> None:
    """``qemu-img create``; ``backing`` is a name and a format."""
    options = f"cluster_size={cluster_size},table_size={table_size}"
    below = () if backing is None else ("-b", backing[0], "-F", backing[1])
    img("create", "-q", "-f", "qed", "-o", options, *below, image, str(size))


def convert(source: Path, source_format: str, target: Path, target_format: str, *more: str) -> None:
    """``qemu-img convert``."""
    img("convert", "-f", source_format, "-O", target_format, *more, source, target)


def compare(image: Path, raw: Path) -> None:
    """Fail unless QEMU reads from the QED image, backing files included, what ``raw`` has."""
    result = img("compare", "-f", "qed", "-F", "raw", image, raw)
    assert result.stdout == "Images are identical.\n", result.stdout  # no other size either


def check(image: Path) -> dict[str, Any]:
    """What ``qemu-img check`` counts; absent is 0."""
    result = img("check", "-f", "qed", "--output=json", image, status=None)
    if result.returncode == 1:
        pytest.fail(f"qemu-img check could not check {image}: {result.stderr}")
    counts: dict[str, Any] = json.loads(result.stdout)
    return {"corruptions": 0, "leaks": 0, "check-errors": 0} | counts


def phantom_leaks(image: Path, cluster_size: int) -> int:
    """How many leaks QEMU 7.2 sees too many: one per ``cluster_size - 1`` clusters (dossier Q1c).

    It counts the clusters of the file too high, and takes those past the end for leaked.
    """
    n_clusters = image.stat().st_size // cluster_size
    return n_clusters // (cluster_size - 1)


def through_nbd(raw: Path, image: Path, folder: Path) -> None:
    """Write a raw disk into a QED image through qemu-nbd, which turns zeroes into ZERO clusters.

    The server ends when its only client has gone.
    """
    socket = folder / "nbd.sock"
    options = ("-f", "qed", "--detect-zeroes=on", "-x", "", "-k", str(socket))
    server = subprocess.Popen([_tool("qemu-nbd"), *options, str(image)])
    try:
        target = f"driver=nbd,open-timeout=20,server.type=unix,server.path={socket}"
        img("convert", "-n", "-f", "raw", "--target-image-opts", raw, target)
        server.wait(20)
    finally:
        server.kill()
        server.wait()


def map_runs(image: Path) -> list[dict[str, Any]]:
    """``qemu-img map``: the runs as QEMU describes them."""
    runs: list[dict[str, Any]] = json.loads(img("map", "-f", "qed", "--output=json", image).stdout)
    return runs


def mkfs_ext4(disk: Path, size: int, tree: Path) -> None:
    """Make a raw disk of ``size`` bytes with an ext4 file system that has the files of ``tree``."""
    with disk.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-d", tree, disk)


def e2fsck(disk: Path) -> None:
    """Fail unless the ext4 file system on a raw disk is sound; changes nothing."""
    run("e2fsck", "-fn", disk)
