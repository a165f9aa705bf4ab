"""The image made for a benchmark: real where it can be, partly allocated, as its source is."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import qedasync
from qedasync.bench import image as making
from qedasync.bench import make_image
from qedasync.errors import QEDError

SIZE = 16 << 20
SBIN = ":/usr/sbin:/sbin"
mkfs = shutil.which("mkfs.ext4", path=SBIN)


@pytest.fixture(autouse=True)
def small_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few files in place of Python's whole library."""
    tree = tmp_path / "library"
    (tree / "package" / "__pycache__").mkdir(parents=True)
    for number in range(20):
        (tree / "package" / f"{number}.py").write_bytes(bytes([number + 1]) * 50_000)
    (tree / "package" / "__pycache__" / "x.pyc").write_bytes(b"not to be copied")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tree))
    return tree


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.skipif(mkfs is None, reason="mkfs.ext4 is not installed")
async def test_make_image_with_mkfs_is_a_partly_allocated_ext4(place: Path) -> None:
    said: list[str] = []
    path, origin = await make_image(place, SIZE, say=said.append)
    assert "ext4 made by mkfs.ext4 -d" in origin
    assert list(place.iterdir()) == [path]
    assert said[-1].startswith("the image is checked")
    async with qedasync.open(path) as image:
        assert image.size == SIZE
        assert (await image.pread(2, 1024 + 56)) == b"\x53\xef"  # ext4's magic
        kinds = {extent.kind async for extent in image.extents()}
        data = [extent.length async for extent in image.extents() if extent.kind == "data"]
    assert kinds == {"data", "unallocated"}
    assert 20 * 50_000 < sum(data) < SIZE // 2 + (1 << 20)


@pytest.mark.skipif(mkfs is None, reason="mkfs.ext4 is not installed")
@pytest.mark.skipif(shutil.which("e2fsck", path=SBIN) is None, reason="e2fsck is not installed")
async def test_make_image_with_mkfs_passes_e2fsck(place: Path, tmp_path: Path) -> None:
    path, _ = await make_image(place, SIZE)
    async with qedasync.open(path) as image:
        (tmp_path / "raw").write_bytes(await image.pread(image.size, 0))
    command = [str(shutil.which("e2fsck", path=SBIN)), "-fn", str(tmp_path / "raw")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


async def test_make_image_without_mkfs_is_a_pattern(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    path, origin = await make_image(place, 5_000_001)
    assert origin == "a pattern (mkfs.ext4 is not installed)"
    async with qedasync.open(path) as image:
        assert image.size == 5_001_216  # the next multiple of 4096
        kinds = [extent.kind async for extent in image.extents()]
    assert kinds == ["data", "unallocated", "data", "unallocated"]


async def test_make_image_with_failing_mkfs_is_a_pattern_and_says_why(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "mkfs.ext4"
    failing.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path: str(failing))
    path, origin = await make_image(place, 4 << 20)
    assert origin == "a pattern (no ext4: no such luck)"
    assert list(place.iterdir()) == [path]


async def test_make_image_that_differs_from_its_source_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fill_badly(image: qedasync.Image, raw: Path) -> None:
        await image.pwrite(b"x", 3 << 20)

    monkeypatch.setattr(making, "_fill", fill_badly)
    with pytest.raises(QEDError, match="differs from its source"):
        await make_image(place, 4 << 20)


async def test_copy_library_small_one_is_repeated_until_the_budget_is_spent(
    tmp_path: Path, small_tree: Path
) -> None:
    one_copy = 20 * (50_000 // 4096 + 2) * 4096
    assert await making._copy_library(small_tree, tmp_path / "tree", int(one_copy * 2.5)) == 50
    assert not list((tmp_path / "tree").rglob("*.pyc"))
    assert len(list((tmp_path / "tree").glob("*"))) == 3
