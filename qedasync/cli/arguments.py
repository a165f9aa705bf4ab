"""Command line arguments, as every verb takes them."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qedasync import parse_size
from qedasync.errors import RequestError

__all__ = ["Parser", "size"]


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, raised as :class:`RequestError`.

    Args:
        verb: the command's word after ``qedasync``.
        description: what it does.
    """

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"qedasync {verb}",
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        self._verb = verb

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{self._verb}: {message}")


def size(text: str) -> int:
    """The type of an argument like ``64k`` or ``10GiB``, in bytes."""
    try:
        return parse_size(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
