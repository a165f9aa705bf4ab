"""Options of a command, taken as the C library's getopt does it: options and names mix freely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qedasync.cli.io.failure import Misused

__all__ = ["Flags", "take_flags"]

Converters = Mapping[str, Callable[[str], Any]]


@dataclass(slots=True)
class Flags:
    """A command, taken apart.

    Attributes:
        given: letter -> its value, None for a flag; the last one counts.
        names: the other words.
        order: the letters, as often as they were given.
    """

    given: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    order: str = ""

    def __contains__(self, letters: str) -> bool:
        """Whether one of the letters was given."""
        return any(letter in self.given for letter in letters)

    def get(self, letter: str, default: Any = None) -> Any:
        """The value of an option."""
        return self.given.get(letter, default)


def take_flags(words: Sequence[str], letters: str, converters: Converters | None = None) -> Flags:
    """Take a command apart.

    Args:
        words: the command's name first.
        letters: the flags it has.
        converters: what makes values of the words of those options that take one, in the
            order of the words.

    Raises:
        Misused: there is no such option, or its value is missing.
    """
    converters = converters or {}
    flags, rest = Flags(), list(reversed(words[1:]))
    while rest:
        word = rest.pop()
        if word == "--":
            flags.names += reversed(rest)
            break
        if word[0] != "-" or word == "-":
            flags.names.append(word)
            continue
        for at, letter in enumerate(word[1:], 2):
            flags.order += letter
            if letter in letters:
                flags.given[letter] = None
            elif letter not in converters:
                raise Misused(err=f"{words[0]}: invalid option -- '{letter}'\n")
            elif word[at:] or rest:
                flags.given[letter] = converters[letter](word[at:] or rest.pop())
                break
            else:
                raise Misused(err=f"{words[0]}: option requires an argument -- '{letter}'\n")
    return flags
