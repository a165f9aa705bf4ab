"""The file of ``--html``: whole under its name, or not there at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedWriter
from typing import TypeAlias

from qedasync.cli.options import ToolError

__all__ = ["page_file"]

Write: TypeAlias = Callable[[Callable[[], str]], None]


@contextmanager
def page_file(name: str | None) -> Iterator[Write]:
    """Gives a function that is told how to make the page; it takes the name when all is done.

    The file is made at once, under another name, so that a place where none can be is known before
    the run and not after it. Without a name nothing is made.

    Raises:
        ToolError: it cannot be written.
    """
    if name is None:
        yield lambda make: None
        return
    target = os.path.realpath(name)
    special = os.path.exists(target) and not os.path.isfile(target)  # a pipe, a terminal
    path = target if special else f"{target}.{os.getpid()}.part"
    flags = os.O_WRONLY | (0 if special else os.O_CREAT | os.O_TRUNC)
    with _explained(name):
        file = open(os.open(path, flags, 0o666), "wb")
    try:
        with file:
            yield partial(_write, file, name)
            with _explained(name):
                file.flush()
                if not special:
                    os.fsync(file.fileno())
                    os.replace(path, target)
    finally:
        if not special:
            with suppress(OSError):
                os.unlink(path)


def _write(file: BufferedWriter, name: str, make: Callable[[], str]) -> None:
    page = make()
    with _explained(name):
        # Names need not be text; a page has to be.
        file.write(page.encode("utf-8", "replace"))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ToolError(f"Could not write '{name}': {error.strerror}") from error
