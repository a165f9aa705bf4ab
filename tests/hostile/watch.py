"""Sees every file that the process opens, whoever opens it: Python's audit events."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Watch", "files", "outside", "watch"]

_NEVER = ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
"""What no image may bring about."""

_CODE = (".py", ".pyc", ".so")


class Watch:
    """Notes what is opened while it looks. There is one; a hook cannot be taken back."""

    def __init__(self) -> None:
        self._seen: list[str] | None = None
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        seen = self._seen
        if seen is None:
            return
        if event == "open" and not isinstance(arguments[0], int):
            seen.append(os.path.realpath(os.fsdecode(arguments[0])))
        elif event in _NEVER:
            seen.append(f"{event} {arguments!r}")

    @contextmanager
    def looking(self) -> Iterator[list[str]]:
        """The files that are opened meanwhile, symbolic links followed."""
        seen: list[str] = []
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None


@cache
def watch() -> Watch:
    """The one there is."""
    return Watch()


def files(seen: list[str]) -> set[str]:
    """Those seen that are not code: it is imported, and the loop's debug mode reads it for its
    reports."""
    return {path for path in seen if not path.endswith(_CODE)}


def outside(seen: list[str], directory: Path) -> list[str]:
    """Of the files seen, those that do not lie in ``directory`` itself; code does not count."""
    inside = str(directory.resolve())
    return sorted(path for path in files(seen) if os.path.dirname(path) != inside)
