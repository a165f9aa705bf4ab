"""The Pythons of this machine that can run qedasync, newest last."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable

from benchmarks import process
from benchmarks.sides import Side, ours

__all__ = ["LOOPS", "find", "variants"]

LOOPS = ("uvloop", "asyncio")

_OLDEST, _NEWEST = 11, 20
_PROBE = "import aiofiles, platform, uvloop; print(platform.python_version())"


def find(more: Iterable[str] = ()) -> dict[str, str]:
    """Version -> interpreter: this one, those on the path, and ``more``, that have what we need."""
    names = [f"python3.{minor}" for minor in range(_OLDEST, _NEWEST)]
    on_path = [path for path in map(shutil.which, names) if path]
    found: dict[str, str] = {}
    for python in [sys.executable, *on_path, *more]:
        try:
            version = process.run([python, "-c", _PROBE]).stdout.strip()
        except process.Failed:
            continue
        found.setdefault(version, python)
    return dict(sorted(found.items(), key=lambda item: _numbers(item[0])))


def variants(pythons: dict[str, str]) -> list[Side]:
    """qedasync in each interpreter on each loop."""
    return [
        ours(loop, python, f"qedasync, Python {version}, {loop}")
        for version, python in pythons.items()
        for loop in LOOPS
    ]


def _numbers(version: str) -> list[int]:
    digits = "".join(c if c.isdigit() else " " for c in version)
    return [int(part) for part in digits.split()]
