"""Taking command lines apart as GNU getopt does, and sizes as qemu-img does."""

from __future__ import annotations

import pytest

from qedasync.cli.format_options import (
    asks_for_help,
    formatting_line,
    join_words,
    parse_format_options,
)
from qedasync.cli.options import HelpAsked, Option, ToolError, Verb, parse
from qedasync.cli.sizes import number, size_word
from qedasync.errors import RequestError

VERB = Verb(
    name="try",
    summary="",
    names="",
    options=(
        Option("f", "format", "FMT", ""),
        Option("q", "", "", ""),
        Option("p", "", "", ""),
        Option("U", "force-share", "", ""),
        Option("", "output", "FORM", ""),
        Option("", "object", "OBJECT", ""),
        Option("", "out", "", ""),
    ),
)


@pytest.mark.parametrize(
    ("words", "given", "names"),
    [
        ("", [], []),
        ("a b", [], ["a", "b"]),
        ("-q a", [("q", "")], ["a"]),
        ("a -q b -p", [("q", ""), ("p", "")], ["a", "b"]),
        ("-pq a", [("p", ""), ("q", "")], ["a"]),
        ("-f qed", [("format", "qed")], []),
        ("-fqed", [("format", "qed")], []),
        ("-pqfqed", [("p", ""), ("q", ""), ("format", "qed")], []),
        ("-pqf qed x", [("p", ""), ("q", ""), ("format", "qed")], ["x"]),
        ("--format qed", [("format", "qed")], []),
        ("--format=qed", [("format", "qed")], []),
        ("--format=", [("format", "")], []),
        ("--format=a=b", [("format", "a=b")], []),
        ("--fo=qed", [("force-share", "")], None),
        ("--forc", [("force-share", "")], []),
        ("--form x", [("format", "x")], []),
        ("--out", [("out", "")], []),
        ("--outp x", [("output", "x")], []),
        ("-f -q", [("format", "-q")], []),
        ("-f --", [("format", "--")], []),
        ("--format --", [("format", "--")], []),
        ("-q -- -p -f", [("q", "")], ["-p", "-f"]),
        ("a -- b -- c", [], ["a", "b", "--", "c"]),
        ("- -q", [("q", "")], ["-"]),
        ("-f a -f b", [("format", "a"), ("format", "b")], []),
    ],
)
def test_parse_takes_words_apart(
    words: str, given: list[tuple[str, str]], names: list[str] | None
) -> None:
    if names is None:
        with pytest.raises(ToolError, match="unrecognized option '--fo=qed'"):
            parse(VERB, words.split())
        return
    parsed = parse(VERB, words.split())
    assert (parsed.given, parsed.names) == (given, names)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("-x", "unrecognized option '-x'"),
        ("-qx", "unrecognized option '-qx'"),
        ("--nope", "unrecognized option '--nope'"),
        ("--nope=1", "unrecognized option '--nope=1'"),
        ("--o", "unrecognized option '--o'"),
        ("--out=1", "unrecognized option '--out=1'"),
        ("-f", "missing argument for option '-f'"),
        ("-qf", "missing argument for option '-qf'"),
        ("--format", "missing argument for option '--format'"),
        ("--forma", "missing argument for option '--forma'"),
    ],
)
def test_parse_of_what_there_is_not_is_refused(words: str, says: str) -> None:
    with pytest.raises(ToolError) as caught:
        parse(VERB, words.split())
    assert str(caught.value) == says


@pytest.mark.parametrize("words", ["-h", "--help", "-qh", "--he", "a -h -x"])
def test_parse_of_help_asks_for_it(words: str) -> None:
    with pytest.raises(HelpAsked):
        parse(VERB, words.split())


def test_parsed_knows_an_option_by_both_names() -> None:
    parsed = parse(VERB, ["-f", "a", "--format=b", "-q"])
    assert parsed.all("f") == parsed.all("format") == ["a", "b"]
    assert parsed.last("f") == parsed.last("format") == "b"
    assert parsed.has("q")
    assert not parsed.has("U")
    assert parsed.last("output", "human") == "human"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("10", 10),
        ("10b", 10),
        ("010", 10),
        ("64k", 65536),
        ("64K", 65536),
        ("1.5G", 3 << 29),
        ("1.k", 1024),
        ("1.1k", 1126),
        ("0x1000", 4096),
        ("0X10", 16),
        ("0x10e", 0x10E),
        ("0x1fb", 0x1FB),
        ("0x10k", 16384),
        ("+5M", 5 << 20),
        (" 10M", 10 << 20),
        ("10MiB", 10 << 20),
        ("7E", 7 << 60),
    ],
)
def test_number_is_bytes(text: str, value: int) -> None:
    assert number(text) == value
    assert size_word("size", text) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "1x", "-1", "1.5", "1.5B", ".5k", "1e3", "inf", "nan", "0x", "1k ", "10MB"],
)
def test_number_of_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        number(text)
    with pytest.raises(ToolError, match=r"^Invalid size specified\. You may use k, M"):
        size_word("size", text)


@pytest.mark.parametrize("text", ["8E", "9E", "9223372036854775808", "9" * 20, "9" * 40])
def test_size_word_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ToolError, match=r"Must be between 0 and 9223372036854775807\."):
        size_word("size", text)


def test_format_options_come_in_order_with_defaults() -> None:
    text = join_words(["table_size=2,backing_file=a,,b", "size=1k", "nocow=on"])
    values = parse_format_options(text, "qed", "x")
    assert list(values) == ["size", "backing_file", "cluster_size", "table_size", "nocow"]
    assert formatting_line("x", "qed", values) == (
        "Formatting 'x', fmt=qed size=1024 backing_file=a,,b cluster_size=65536 table_size=2"
        " nocow=on"
    )


@pytest.mark.parametrize("word", ["", ",", "a=1,", ",a=1", "a=1,,,"])
def test_format_options_with_a_lone_comma_are_refused(word: str) -> None:
    with pytest.raises(ToolError) as caught:
        join_words(["size=1", word])
    assert str(caught.value) == f"Invalid option list: {word}"


@pytest.mark.parametrize(
    ("text", "asks"), [("help", True), ("size=1,?", True), ("help=1", False), ("a=help", False)]
)
def test_format_options_may_ask_for_help(text: str, asks: bool) -> None:
    assert asks_for_help(text) is asks
