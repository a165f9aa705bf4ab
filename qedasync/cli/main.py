"""The ``qedasync`` command: finds the verb and turns what goes wrong into one line.

Nothing is imported before it is needed, so that ``qedasync --version`` is there at once. Called
through a link named qemu-img, qemu-io or qemu-nbd, it is that tool.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import qedasync
from qedasync.cli.options import HelpAsked, ToolError
from qedasync.cli.run import EXIT_FAILED, EXIT_OK, link_name, say
from qedasync.errors import QEDError

__all__ = ["QEMU_VERSION", "VERBS", "main"]

VERBS = {
    name: f"qedasync.cli.{name}"
    for name in (
        "create",
        "info",
        "check",
        "map",
        "convert",
        "compare",
        "rebase",
        "commit",
        "resize",
        "measure",
        "dd",
        "bench",
        "io",
        "serve",
        "snapshot",
        "amend",
        "help",
        "completion",
    )
}
"""Verb -> the module whose ``main(words)`` does it and returns the exit code, and whose ``VERB``
describes it."""

QEMU_VERSION = "7.2.22"
"""The version of the tools whose words, output and exit codes these are."""

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; answers the exit code.

    Args:
        arguments: without the program's name; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _let_any_name_out()
    try:
        code = _guarded(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output has left; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        return _fail(f"cannot write the output: {error.strerror}")


def _guarded(words: list[str]) -> int:
    """Do it; every error but that of stdout becomes a line and a code."""
    try:
        return _dispatch(words)
    except HelpAsked as asked:
        return _show_help(asked.verb.name)
    except KeyboardInterrupt as interrupt:
        return getattr(interrupt, "code", INTERRUPTED)
    except ToolError as error:
        return _fail(str(error), error.code)
    except BrokenPipeError:
        raise
    except (QEDError, OSError) as error:
        return _fail(str(error))
    except Exception as error:
        if os.environ.get("QEDASYNC_DEBUG"):
            raise
        return _fail(
            f"internal error, please report it: {type(error).__name__}: {error}"
            " (QEDASYNC_DEBUG=1 shows where)"
        )


def _dispatch(words: list[str]) -> int:
    link = link_name()
    verb, *rest = words or [""]
    if verb in ("-V", "--version") or (verb == "version" and link is None):
        return _print_version(link)
    if link in ("qemu-io", "qemu-nbd"):
        return _main_of("io" if link == "qemu-io" else "serve")(words)
    if verb in ("-h", "--help"):
        return _show_help(*rest[:1])
    if not verb:
        raise ToolError("Not enough arguments" + _hint())
    if verb.startswith("-"):
        raise ToolError(f"unrecognized option '{verb}'")
    if verb not in VERBS:
        raise ToolError(f"Command not found: {verb}{_hint()}")
    return _main_of(verb)(rest)


def _hint() -> str:
    """What the links leave out: scripts know what qemu-img says there."""
    return "" if link_name() else "; 'qedasync help' lists the commands"


def _main_of(verb: str) -> Callable[[Sequence[str]], int]:
    try:
        found: Callable[[Sequence[str]], int] = import_module(VERBS[verb]).main
    except ModuleNotFoundError as error:
        if error.name != VERBS[verb]:
            raise
        raise ToolError(f"there is no '{verb}' yet") from error
    return found


def _print_version(link: str | None) -> int:
    ours = f"qedasync {qedasync.__version__}"
    word = "" if link == "qemu-nbd" else "version "  # as it is there
    print(f"{link} {word}{QEMU_VERSION} ({ours})" if link else ours)
    return EXIT_OK


def _show_help(*verb: str) -> int:
    return _main_of("help")(verb)


def _fail(message: str, code: int = EXIT_FAILED) -> int:
    say(message)
    return code


def _let_any_name_out() -> None:
    """File names need not be UTF-8; they are printed as the bytes they are."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")
