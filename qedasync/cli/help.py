"""``qedasync help [VERB]``: a page of its own for each verb, made from its description."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from importlib import import_module

from qedasync.cli.options import Option, ToolError, Verb, parse

__all__ = ["VERB", "known_verbs", "main", "page", "synopsis"]

VERB = Verb(
    name="help",
    summary="say what the commands do",
    names="[COMMAND]",
    options=(),
    text="Lists the commands, or tells all about one of them.",
)

_WIDTH = 80

_INTRO = """\
Works on QED and raw disk images, in the words of qemu-img and qemu-io. Called
through a link named qemu-img or qemu-io, it is that tool. The commands:
"""

_OUTRO = """\
'qedasync help COMMAND' tells all about a command, 'qedasync --version' prints
the version, 'qedasync help completion' has the shells' completion."""


def main(words: Sequence[str]) -> int:
    """Run ``qedasync help``; answers the exit code."""
    names = parse(VERB, words).names
    if not names:
        print(_overview())
        return 0
    verb = _find(names[0])
    if verb is None:
        raise ToolError(f"Command not found: {names[0]}; 'qedasync help' lists the commands")
    print(page(verb))
    return 0


def known_verbs() -> dict[str, Verb]:
    """The description of every verb there is, in the order of help."""
    from qedasync.cli.main import VERBS

    return {name: verb for name in VERBS if (verb := _find(name)) is not None}


def _find(name: str) -> Verb | None:
    from qedasync.cli.main import VERBS

    try:
        verb: Verb = import_module(VERBS[name]).VERB
    except (AttributeError, KeyError, ModuleNotFoundError):
        return None
    return verb


def _overview() -> str:
    lines = [f"  {verb.name:<11} {verb.summary}" for verb in known_verbs().values()]
    return "\n".join(["usage: qedasync COMMAND ...", "", _INTRO, *lines, "", _OUTRO])


def page(verb: Verb) -> str:
    """The man page of one verb, as text."""
    parts = [
        ("NAME", _wrapped(f"qedasync {verb.name} - {verb.summary}", hanging=4)),
        ("SYNOPSIS", _wrapped(synopsis(verb), hanging=4)),
        ("DESCRIPTION", _paragraphs(verb.text)),
        ("OPTIONS", list(_option_lines(verb.options))),
        ("EXAMPLES", list(_example_lines(verb))),
    ]
    return "\n\n".join(f"{title}\n{_indented(lines)}" for title, lines in parts if lines)


def synopsis(verb: Verb) -> str:
    """The command line in one line: ``qedasync info [-f FMT] ... FILENAME``."""
    options = [f"[{_spelled(option, ' ')}]" for option in verb.options]
    return " ".join(["qedasync", verb.name, *options, verb.names]).strip()


def _spelled(option: Option, gap: str) -> str:
    """The shortest way to write it."""
    if option.short:
        return f"-{option.short}{gap}{option.value}".rstrip()
    return f"--{option.long}={option.value}" if option.value else f"--{option.long}"


def _option_lines(options: Sequence[Option]) -> Iterator[str]:
    for option in options:
        spelled = [f"-{option.short} {option.value}".rstrip()] if option.short else []
        if option.long:
            value = f"={option.value}" if option.value else ""
            spelled.append(f"--{option.long}{value}")
        yield ", ".join(spelled)
        words = option.help
        if option.choices:
            words += f": {', '.join(option.choices)}"
        yield from (f"    {line}" for line in _wrapped(words, indent=8))


def _example_lines(verb: Verb) -> Iterator[str]:
    for number, example in enumerate(verb.examples):
        if number:
            yield ""
        yield from _wrapped(f"{example.what}:")
        yield ""
        yield f"    {example.command}"


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in filter(None, text.split("\n\n")):
        lines += ([""] if lines else []) + _wrapped(" ".join(paragraph.split()))
    return lines


def _wrapped(text: str, *, indent: int = 4, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH - indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines)
