"""Help pages: every verb has one, and it names all there is."""

from __future__ import annotations

import pytest

from qedasync.cli.help import known_verbs, page, synopsis
from qedasync.cli.main import VERBS

NAMES = list(known_verbs())


def test_every_verb_describes_itself() -> None:
    assert list(VERBS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_page_names_every_option_and_example(name: str) -> None:
    verb = known_verbs()[name]
    text = page(verb)
    head, synopsis_and_more = text.split("\n\nSYNOPSIS\n")
    assert head.split() == ["NAME", "qedasync", name, "-", *verb.summary.split()]
    assert synopsis_and_more.startswith(f"    qedasync {name}")
    for option in verb.options:
        spelled = [f"-{option.short}"] if option.short else []
        spelled += [f"--{option.long}"] if option.long else []
        assert all(word in text for word in spelled)
        assert all(choice in text for choice in option.choices)
    assert all(example.command in text for example in verb.examples)


@pytest.mark.parametrize("name", NAMES)
def test_page_fits_a_terminal_and_has_no_odd_end(name: str) -> None:
    verb = known_verbs()[name]
    commands = {f"    {4 * ' '}{example.command}" for example in verb.examples}
    for line in page(verb).splitlines():
        assert len(line) <= 80 or line in commands, line
        assert line == line.rstrip()


@pytest.mark.parametrize("name", NAMES)
def test_verb_description_is_whole(name: str) -> None:
    verb = known_verbs()[name]
    assert verb.name == name
    assert verb.summary
    assert verb.text.strip()
    assert verb.examples or name == "help"
    letters = [option.short for option in verb.options if option.short]
    words = [option.long for option in verb.options if option.long]
    assert len(set(letters)) == len(letters)
    assert len(set(words)) == len(words)
    assert all(option.help for option in verb.options)


def test_synopsis_shows_the_shortest_spelling() -> None:
    assert synopsis(known_verbs()["info"]).startswith(
        "qedasync info [-f FMT] [--output=FORM] [--backing-chain] [-U]"
    )
