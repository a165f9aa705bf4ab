"""Options as ``qemu-img`` takes them: described once, for parsing, help and completion.

Names and options mix freely, short options group (``-pq``), a long one takes ``--name=value`` or
``--name value`` and may be cut short where that is unambiguous, ``--`` ends the options.
"""

from __future__ import annotations

import getopt
from collections.abc import Sequence
from dataclasses import dataclass, field

from qedasync import QEDError

__all__ = ["Example", "Option", "Parsed", "ToolError", "Verb", "parse"]


class ToolError(QEDError):
    """What a verb has to say in one line on stderr, and the exit code that goes with it.

    Attributes:
        code: the exit code.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a verb.

    Attributes:
        short: one letter, or "".
        long: without dashes, or "".
        value: what its value is called in help, "" if it takes none.
        help: what it does, a phrase.
        choices: the values there are, for help and completion; parsing does not look at it.
    """

    short: str
    long: str
    value: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What :class:`Parsed` knows it by: the long name, or the letter if it has none."""
        return self.long or self.short


@dataclass(frozen=True, slots=True)
class Example:
    """A command line that works, and what it is for."""

    command: str
    what: str


@dataclass(frozen=True, slots=True)
class Verb:
    """What the command line knows of a verb.

    Attributes:
        name: the word after ``qedasync``.
        summary: a phrase.
        names: what else it takes, as in ``"FILENAME [SIZE]"``.
        options: all of them.
        text: paragraphs for ``help VERB``.
        examples: for ``help VERB``.
    """

    name: str
    summary: str
    names: str
    options: tuple[Option, ...]
    text: str = ""
    examples: tuple[Example, ...] = ()


@dataclass(slots=True)
class Parsed:
    """The command line, taken apart.

    Attributes:
        given: (option's key, value) in the order given; the value of a flag is "".
        names: the other words.
    """

    given: list[tuple[str, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def has(self, key: str) -> bool:
        """Whether the option was given."""
        return any(name == key for name, _ in self.given)

    def last(self, key: str, default: str | None = None) -> str | None:
        """The value given last, or ``default``."""
        return next((value for name, value in reversed(self.given) if name == key), default)

    def all(self, key: str) -> list[str]:
        """Every value, in order."""
        return [value for name, value in self.given if name == key]


def parse(verb: Verb, words: Sequence[str]) -> Parsed:
    """Take ``words`` apart.

    Raises:
        ToolError: an option that the verb does not have, or one without its value.
    """
    letters = "".join(
        option.short + (":" if option.value else "") for option in verb.options if option.short
    )
    longs = [option.long + ("=" if option.value else "") for option in verb.options if option.long]
    try:
        given, names = getopt.gnu_getopt(list(words), letters, longs)
    except getopt.GetoptError as error:
        raise ToolError(f"{verb.name}: {error}; try '{verb.name} --help'") from error
    keys = {f"-{option.short}": option.key for option in verb.options if option.short}
    keys |= {f"--{option.long}": option.key for option in verb.options if option.long}
    return Parsed([(keys[name], value) for name, value in given], names)
