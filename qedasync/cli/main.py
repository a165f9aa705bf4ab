"""The ``qedasync`` command: finds the verb and turns what goes wrong into one line.

Nothing is imported before it is needed, so that ``qedasync --version`` is there at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import qedasync
from qedasync.errors import QEDError

__all__ = ["VERBS", "main"]

VERBS = {
    "bench": ("qedasync.cli.bench", "measure concurrent reads and writes of an image"),
}
"""Verb -> the module whose ``main(arguments)`` does it and returns the exit code, and a summary."""

FAILED = 1
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; answers the exit code.

    Args:
        arguments: without the program's name; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has left; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (QEDError, OSError) as error:
        return _fail(str(error))


def _dispatch(words: list[str]) -> int:
    verb, *rest = words or [""]
    if verb in ("-V", "--version", "version"):
        print(f"qedasync {qedasync.__version__}")
        return 0
    if verb in ("-h", "--help", "help"):
        if rest and rest[0] in VERBS:
            return _run(rest[0], ["--help"])
        print(_usage())
        return 0
    if not verb:
        print(_usage(), file=sys.stderr)
        return FAILED
    if verb not in VERBS:
        return _fail(f"there is no command {verb!r}; qedasync help lists them")
    return _run(verb, rest)


def _run(verb: str, rest: list[str]) -> int:
    code: int = import_module(VERBS[verb][0]).main(rest)
    return code


def _fail(message: str) -> int:
    print(f"qedasync: {message}", file=sys.stderr)
    return FAILED


def _usage() -> str:
    lines = [f"  {verb:<10} {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(
        [
            "usage: qedasync COMMAND ...",
            "",
            "Works on QED disk images. The commands:",
            *lines,
            "",
            "qedasync help COMMAND says more; qedasync --version prints the version.",
        ]
    )
