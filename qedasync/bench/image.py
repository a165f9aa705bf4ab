"""Makes an image worth measuring: a real file system with real files, partly allocated.

``mkfs.ext4 -d`` lays this Python's own library out as an ext4 file system, and the result goes into
a QED image through the public API, zeroes left out. Where that program is missing, a pattern of the
same sort stands in. Either way the image is checked and compared before anyone measures it.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import ParamSpec, TypeVar

import aiofiles

import qedasync
from qedasync.errors import QEDError

__all__ = ["make_image"]

P = ParamSpec("P")
T = TypeVar("T")

_CHUNK = 2 << 20
_SHARE = 0.45  # of the file system that files may fill, so that there is room to allocate
_COPIES = 8  # of the library at most, where it is too small for that
_SKIPPED = {"__pycache__", "site-packages", "dist-packages"}
_SBIN = os.pathsep.join(("/usr/sbin", "/sbin"))  # where Debian has mkfs, and not on every path
_BLOCK = 4096


async def make_image(
    directory: Path, size: int, *, say: Callable[[str], None] = lambda line: None
) -> tuple[Path, str]:
    """Make and check an image of at least ``size`` bytes in ``directory``.

    Args:
        directory: exists; nothing but the image is left in it.
        size: guest bytes, rounded up to a multiple of 4096.
        say: is told what goes on, a line at a time.

    Returns:
        the image's path, and where its content came from.

    Raises:
        QEDError: the image could not be made, or is not what it should be.
    """
    size = -(-size // _BLOCK) * _BLOCK
    raw, path = directory / "bench.raw", directory / "bench.qed"
    say(f"making an image of {size >> 20} MiB in {directory}")
    try:
        origin = await _make_raw(raw, directory / "tree", size)
        await qedasync.create(path, size)
        async with qedasync.open(path, "r+") as image:
            await _fill(image, raw)
        async with qedasync.open(path) as image:
            await _verify(image, raw)
    finally:
        await _in_thread(raw.unlink, True)
    say("the image is checked: tables clean, content equal to its source")
    return path, origin


async def _make_raw(raw: Path, tree: Path, size: int) -> str:
    """Make the raw file; answers where its content came from."""
    program = shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + os.pathsep + _SBIN)
    if program is None:
        await _in_thread(_write_pattern, raw, size)
        return "a pattern (mkfs.ext4 is not installed)"
    source = Path(sysconfig.get_path("stdlib"))
    try:
        count = await _copy_library(source, tree, int(size * _SHARE))
        await _in_thread(_run_mkfs, program, tree, raw, size)
    except (OSError, subprocess.CalledProcessError) as error:
        await _in_thread(_write_pattern, raw, size)
        return f"a pattern (no ext4: {_reason(error)})"
    finally:
        await _in_thread(shutil.rmtree, tree, True)
    return f"ext4 made by mkfs.ext4 -d, {count:,} files of {source}"


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that blocks. Cancellation: raised when the function has ended."""
    job = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    cancelled = None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return job.result()


def _run_mkfs(program: str, tree: Path, raw: Path, size: int) -> None:
    with raw.open("wb") as file:
        file.truncate(size)
    command = [program, "-q", "-F", "-b", str(_BLOCK), "-d", os.fspath(tree), os.fspath(raw)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    lines = [] if isinstance(error, OSError) else error.stderr.decode(errors="replace").split("\n")
    return next((line.strip() for line in lines if line.strip()), str(error))


def _write_pattern(raw: Path, size: int) -> None:
    """Bytes that do not repeat in two MiB of five; nothing is left of what the file had."""
    rng = random.Random(0)
    with raw.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, 1 << 20):
            if (start >> 20) % 5 in (0, 3):
                file.seek(start)
                file.write(rng.randbytes(min(1 << 20, size - start)))


async def _copy_library(source: Path, tree: Path, budget: int) -> int:
    """Copy files of ``source`` below ``tree`` till ``budget`` bytes are used; answers how many."""
    await _in_thread(tree.mkdir)
    count = 0
    for copy in range(_COPIES):
        copied, budget = await _in_thread(_copy_files, source, tree / f"python-{copy}", budget)
        count += copied
        if copied == 0:
            break
    return count


def _copy_files(source: Path, tree: Path, budget: int) -> tuple[int, int]:
    """Copy the files that fit into ``budget`` bytes; answers how many, and what is left of it."""
    copied = 0
    for file in _files(source):
        # Each file takes whole blocks, and an inode.
        cost = (file.stat().st_size // _BLOCK + 2) * _BLOCK
        if cost <= budget:
            target = tree / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            budget -= cost
            copied += 1
    return copied, budget


def _files(source: Path) -> Iterator[Path]:
    """The regular files of a tree that can be read, in the same order every time."""
    for root, directories, names in os.walk(source):
        directories[:] = sorted(name for name in directories if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path


async def _fill(image: qedasync.Image, raw: Path) -> None:
    """Write what is not zero, whole clusters at a time."""
    pos = 0
    async with aiofiles.open(raw, "rb") as file:
        while chunk := await file.read(_CHUNK):
            for start, end in _data_runs(chunk, image.cluster_size):
                await image.pwrite(memoryview(chunk)[start:end], pos + start)
            pos += len(chunk)


def _data_runs(chunk: bytes, cluster_size: int) -> Iterator[tuple[int, int]]:
    """Where neighbouring clusters with anything but zeroes start and end."""
    zeroes = bytes(cluster_size)

    def has_data(start: int) -> bool:
        return not chunk.startswith(zeroes[: len(chunk) - start], start)

    for data, starts in groupby(range(0, len(chunk), cluster_size), has_data):
        if data:
            run = list(starts)
            yield run[0], min(run[-1] + cluster_size, len(chunk))


async def _verify(image: qedasync.Image, raw: Path) -> None:
    """Raise QEDError unless the tables are clean and every byte is the raw file's."""
    result = await image.check()
    if not result.clean:
        raise QEDError(f"the image made for the benchmark does not pass its check: {result}")
    pos = 0
    async with aiofiles.open(raw, "rb") as file:
        while chunk := await file.read(_CHUNK):
            if await image.pread(len(chunk), pos) != chunk:
                raise QEDError(f"the image made for the benchmark differs from its source at {pos}")
            pos += len(chunk)
    if pos != image.size:
        raise QEDError(f"the image made for the benchmark has {image.size} bytes, not {pos}")
