"""The files that cases run on: images, and raw files that hold the same bytes.

An image that no run changes much is made once, and cases whose images are alike share it. One that
a run uses up is made anew for each run, right after the last one has been removed: its page cache
then gets the memory that was just freed. Memory that a virtual machine has never used before is
several times slower, and would make the first of two sides look bad.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

from benchmarks import ours, qemu
from benchmarks.workload import Workload

__all__ = ["Recipe", "Shelf", "drop_cache", "warm_up"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is before a run.

    Attributes:
        size: guest bytes.
        filled: guest ranges (offset, length) that hold data.
        rehearsed: who wrote the stream's own blocks before the run, or "" if nobody did.
        stream: what was rehearsed.
        layers: empty overlays, one upon the other, on top of what is filled.
        owner: the case that has it for itself, as it writes to it, or "".
    """

    size: int
    filled: tuple[tuple[int, int], ...] = ()
    rehearsed: Literal["", "qemu", "ours"] = ""
    stream: Workload | None = None
    layers: int = 0
    owner: str = ""

    def make(self, path: Path) -> None:
        """Make the image, by QEMU's tools but for one rehearsal, which takes them minutes."""
        qemu.create(str(path), self.size)
        if self.stream is not None:
            stream = replace(self.stream, write=True, cache="unsafe")
            if self.rehearsed == "ours":
                asyncio.run(ours.run([str(path)], stream))
            else:
                qemu.bench(str(path), stream, "threads")
        if self.filled:
            qemu.fill(str(path), self.filled)

    def make_raw(self, path: Path) -> None:
        """A raw file with the same ranges filled; what a rehearsal writes is left out."""
        with path.open("wb", buffering=0) as file:
            file.truncate(self.size if self.size <= 1 << 40 else 0)
            for offset, length in self.filled:
                file.seek(offset)
                for _ in range(length // qemu.FILL_BYTES):
                    file.write(bytes(qemu.FILL_BYTES))


class Shelf:
    """Files in a directory, made when they are asked for.

    Args:
        directory: exists; the files in it are ours.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._standing: dict[tuple[Recipe, str, int], Path] = {}
        self._numbers = count()

    def standing(self, recipe: Recipe, kind: str, n_files: int = 1) -> list[str]:
        """Files that stay; the same ones every time."""
        return [str(self._one_standing(recipe, kind, number)) for number in range(n_files)]

    @contextmanager
    def fresh(self, recipe: Recipe, kind: str) -> Iterator[list[str]]:
        """A file for one run. What is below an overlay stays."""
        path = self._new(recipe, kind)
        try:
            yield [str(path)]
        finally:
            path.unlink()

    def forget(self, owner: str) -> None:
        """Remove the files that a case had for itself."""
        for key in [key for key in self._standing if key[0].owner == owner]:
            self._standing.pop(key).unlink()

    def _one_standing(self, recipe: Recipe, kind: str, number: int) -> Path:
        key = (recipe, kind, number)
        if key not in self._standing:
            self._standing[key] = self._new(recipe, kind)
        return self._standing[key]

    def _new(self, recipe: Recipe, kind: str) -> Path:
        """Made and written back, so that no old dirty pages weigh on a run."""
        path = self._directory / f"{next(self._numbers)}.{kind}"
        if recipe.layers and kind == "qed":
            below = replace(recipe, layers=recipe.layers - 1)
            backing = self._one_standing(below, kind, 0)
            qemu.create(str(path), recipe.size, backing=backing.name)
        elif kind == "qed":
            recipe.make(path)
        else:
            recipe.make_raw(path)
        subprocess.run(["sync", "-f", str(path)], check=True)
        return path


def drop_cache(path: str) -> None:
    """Have the kernel forget what it holds of a file; it must have been written back."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def warm_up(directory: Path, size: int = 6 << 30) -> None:
    """Let the host touch its memory once: the first use of a page is slow in a virtual machine."""
    path = directory / "warm-up"
    chunk = bytes(MIB)
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(chunk)
    path.unlink()
