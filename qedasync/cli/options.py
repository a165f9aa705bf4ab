"""Options as ``qemu-img`` takes them: described once, for parsing, help and completion.

Names and options mix freely, short options group (``-pq``), a long one takes ``--name=value`` or
``--name value`` and may be cut short where that is unambiguous, ``--`` ends the options.

Every start of the program comes through here. So these are named tuples: to make a data class takes
longer than all else that ``--version`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qedasync import QEDError

__all__ = ["Example", "HelpAsked", "Option", "Parsed", "ToolError", "Verb", "WrongOption", "parse"]


class ToolError(QEDError):
    """What a verb has to say in one line on stderr, and the exit code that goes with it.

    Attributes:
        code: the exit code.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class WrongOption(ToolError):
    """An option that the verb does not have, or one whose value is missing or too many.

    Attributes:
        getopt: what the C library says of it, and so qemu-io and qemu-nbd.
    """

    def __init__(self, message: str, getopt: str) -> None:
        super().__init__(message)
        self.getopt = getopt


class Option(NamedTuple):
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


class Example(NamedTuple):
    """A command line that works, and what it is for."""

    command: str
    what: str


class Verb(NamedTuple):
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


class HelpAsked(Exception):
    """``--help`` stands among a verb's options.

    Attributes:
        verb: whose.
    """

    def __init__(self, verb: Verb) -> None:
        super().__init__(verb.name)
        self.verb = verb


_NEVER_SHORT = ("backing", "progress")
_HELP = Option("h", "help", "", "show this")


class Parsed:
    """The command line, taken apart. An option may be asked for by its letter or its long name.

    Attributes:
        given: (option's key, value) in the order given; the value of a flag is "".
        names: the other words.
        letters: letter -> key, of the options that have both.
    """

    def __init__(
        self,
        given: Sequence[tuple[str, str]] = (),
        names: Sequence[str] = (),
        letters: Mapping[str, str] | None = None,
    ) -> None:
        self.given = list(given)
        self.names = list(names)
        self.letters = dict(letters or {})

    def has(self, key: str) -> bool:
        """Whether the option was given."""
        return bool(self.all(key))

    def last(self, key: str, default: str | None = None) -> str | None:
        """The value given last, or ``default``."""
        return next(reversed(self.all(key)), default)

    def all(self, key: str) -> list[str]:
        """Every value, in order."""
        key = self.letters.get(key, key)
        return [value for name, value in self.given if name == key]


def parse(verb: Verb, words: Sequence[str]) -> Parsed:
    """Take ``words`` apart.

    Raises:
        HelpAsked: ``-h`` or ``--help`` is among the options.
        WrongOption: an option that the verb does not have, or one without its value.
    """
    rest = list(reversed(words))
    parsed = Parsed(letters={option.short: option.key for option in verb.options if option.short})
    while rest:
        word = rest.pop()
        if word == "--":
            parsed.names += reversed(rest)
            break
        if word.startswith("--"):
            parsed.given.append(_take_long(verb, word, rest))
        elif word.startswith("-") and word != "-":
            parsed.given += _take_letters(verb, word, rest)
        else:
            parsed.names.append(word)
    return parsed


def _take_long(verb: Verb, word: str, rest: list[str]) -> tuple[str, str]:
    """One long option; its value may be the next of ``rest``, which is in reverse."""
    name, equals, value = word[2:].partition("=")
    known = (*verb.options, _HELP)
    exact = [option for option in known if option.long == name]
    # What qemu-img has not makes nothing ambiguous that is not so there.
    matches = [o for o in known if o.long.startswith(name) and o.long not in _NEVER_SHORT]
    unknown = f"unrecognized option '{word}'"
    if len(exact or matches) != 1:
        raise WrongOption(unknown, _ambiguous(word, matches) if matches else unknown)
    option = (exact or matches)[0]
    if equals and not option.value:
        raise WrongOption(unknown, f"option '--{option.long}' doesn't allow an argument")
    if option is _HELP:
        raise HelpAsked(verb)
    if option.value and not equals:
        value = _value(word, rest, f"option '--{option.long}' requires an argument")
    return option.key, value


def _ambiguous(word: str, matches: Sequence[Option]) -> str:
    names = " ".join(f"'--{option.long}'" for option in matches)
    return f"option '{word}' is ambiguous; possibilities: {names}"


def _take_letters(verb: Verb, word: str, rest: list[str]) -> list[tuple[str, str]]:
    """Short options in one word; the first that takes a value takes what follows it."""
    found: list[tuple[str, str]] = []
    for at, letter in enumerate(word[1:], 2):
        option = next((o for o in (*verb.options, _HELP) if o.short == letter), None)
        if option is None:
            raise WrongOption(f"unrecognized option '{word}'", f"invalid option -- '{letter}'")
        if option is _HELP:
            raise HelpAsked(verb)
        if option.value:
            missing = f"option requires an argument -- '{letter}'"
            found.append((option.key, word[at:] or _value(word, rest, missing)))
            break
        found.append((option.key, ""))
    return found


def _value(word: str, rest: list[str], missing: str) -> str:
    if not rest:
        raise WrongOption(f"missing argument for option '{word}'", missing)
    return rest.pop()
