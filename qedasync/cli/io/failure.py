"""How a command ends that does not end well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from qedasync.errors import QEDError

__all__ = ["Failed", "Misused", "failing"]


class Failed(Exception):
    """A command has failed, for the reason given.

    Attributes:
        out: what to print on stdout, with its line end; may be "".
        err: likewise on stderr.
    """

    def __init__(self, out: str = "", err: str = "") -> None:
        super().__init__(out or err)
        self.out = out
        self.err = err


class Misused(Failed):
    """The words are not what the command takes: its usage is printed as well."""


@contextmanager
def failing(what: str) -> Iterator[None]:
    """An error of the library becomes the command's, as in ``"read failed: ..."``."""
    from qedasync.cli.nodes import errno_of

    try:
        yield
    except QEDError as error:
        raise Failed(f"{what}: {os.strerror(errno_of(error))}\n") from error
