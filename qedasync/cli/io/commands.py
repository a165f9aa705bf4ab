"""The commands: what each takes, who does it, and what its help says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from qedasync.cli.io.help_texts import TEXTS

if TYPE_CHECKING:
    from qedasync.cli.io.session import Session

__all__ = ["COMMANDS", "Command", "find_command"]

_PACKAGE = __name__.rpartition(".")[0]


class Command(NamedTuple):
    """One command.

    Attributes:
        name: its first word.
        module: the module of this package that has the function of its name, with "do_" before it.
        takes: the words after the name, for help.
        summary: what it does, for help.
        short: another name, or "".
        least, most: how many words it takes; no limit if ``most`` is None.
        needs_image: whether there must be an open image.
        writes: whether that must not be read-only.
    """

    name: str
    module: str
    takes: str
    summary: str
    short: str = ""
    least: int = 0
    most: int | None = 0
    needs_image: bool = True
    writes: bool = False

    @property
    def run(self) -> Callable[[Session, Sequence[str]], Awaitable[None]]:
        """Does it; takes all the words, the name included."""
        module = import_module(f"{_PACKAGE}.{self.module}")
        found: Callable[[Session, Sequence[str]], Awaitable[None]] = getattr(
            module, f"do_{self.name}"
        )
        return found

    def usage(self, name: str | None = None) -> str:
        """A line about it, under the name that it was asked for."""
        words = " ".join(filter(None, (name or self.name, self.takes)))
        # qemu-io's "map" has a second space.
        return f"{words}{' ' * (self.name == 'map')} -- {self.summary}\n"

    @property
    def text(self) -> str:
        """More about it, or ""."""
        return TEXTS.get(self.name, "")


COMMANDS = (
    Command("abort", "process", "", "simulate a program crash using abort(3)", needs_image=False),
    Command("aio_flush", "aio", "", "completes all outstanding aio requests"),
    Command(
        "aio_read",
        "aio",
        "[-Ciqv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
        least=2,
        most=None,
    ),
    Command(
        "aio_write",
        "aio",
        "[-Cfiquz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
        least=2,
        most=None,
        writes=True,
    ),
    Command(
        "alloc",
        "facts",
        "offset [count]",
        "checks if offset is allocated in the file",
        short="a",
        least=1,
        most=2,
    ),
    Command(
        "break",
        "breakpoints",
        "event tag",
        "sets a breakpoint on event and tags the stopped request as tag",
        least=2,
        most=2,
    ),
    Command("close", "images", "", "close the current open file", short="c"),
    Command(
        "discard",
        "transfers",
        "[-Cq] off len",
        "discards a number of bytes at a specified offset",
        short="d",
        least=2,
        most=None,
        writes=True,
    ),
    Command("flush", "transfers", "", "flush all in-core file state to disk", short="f"),
    Command(
        "help",
        "process",
        "[command]",
        "help for one or all commands",
        short="?",
        most=1,
        needs_image=False,
    ),
    Command("info", "facts", "", "prints information about the current file", short="i"),
    Command("length", "facts", "", "gets the length of the current file", short="l"),
    Command("map", "facts", "", "prints the allocated areas of a file"),
    Command(
        "open",
        "images",
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open the file specified by path",
        short="o",
        least=1,
        most=None,
        needs_image=False,
    ),
    Command("quit", "process", "", "exit the program", short="q", most=None, needs_image=False),
    Command(
        "read",
        "transfers",
        "[-abCqv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        short="r",
        least=2,
        most=None,
    ),
    Command(
        "readv",
        "transfers",
        "[-Cqv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        least=2,
        most=None,
    ),
    Command("remove_break", "breakpoints", "tag", "remove a breakpoint by tag", least=1, most=1),
    Command(
        "reopen",
        "images",
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
        most=None,
    ),
    Command("resume", "breakpoints", "tag", "resumes the request tagged as tag", least=1, most=1),
    Command("sigraise", "process", "signal", "raises a signal", least=1, most=1, needs_image=False),
    Command(
        "sleep",
        "process",
        "",
        "waits for the given value in milliseconds",
        least=1,
        most=1,
        needs_image=False,
    ),
    Command(
        "truncate",
        "images",
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
        short="t",
        least=1,
        most=3,
        writes=True,
    ),
    Command(
        "wait_break",
        "breakpoints",
        "tag",
        "waits for the suspension of a request",
        least=1,
        most=1,
    ),
    Command(
        "write",
        "transfers",
        "[-bcCfnquz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
        short="w",
        least=2,
        most=None,
        writes=True,
    ),
    Command(
        "writev",
        "transfers",
        "[-Cfq] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
        least=2,
        most=None,
        writes=True,
    ),
)
"""All of them, sorted; the lines of their help are qemu-io's."""


def find_command(name: str) -> Command | None:
    """The command of that name, or of that short name."""
    return next((one for one in COMMANDS if name == one.name or name == (one.short or None)), None)
