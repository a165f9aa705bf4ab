"""Values of options, and the order QEMU goes through them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.cli.nodes.values import (
    Options,
    choice,
    extract,
    flag,
    flatten,
    in_qemus_order,
    nested,
    number,
    refuse_rest,
    size,
    text,
)
from qedasync.cli.options import ToolError


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", "a"), (True, "on"), (False, "off"), (5, "5"), (0.5, "0.5"), (None, None), ({}, None)],
)
def test_text_of_a_value_is_what_a_command_line_would_have(
    value: object, expected: str | None
) -> None:
    assert text(value) == expected


def test_flatten_makes_dotted_keys_of_objects_and_lists() -> None:
    value = {"a": {"b": 1, "c": {"d": 2}}, "e": [3, {"f": 4}], "g": {}}
    assert dict(flatten(value)) == {"a.b": 1, "a.c.d": 2, "e.0": 3, "e.1.f": 4, "g": {}}


def test_flatten_object_counts_before_its_dotted_key() -> None:
    for value in ({"a": {"b": 1}, "a.b": 2}, {"a.b": 2, "a": {"b": 1}}):
        assert dict(flatten(value)) == {"a.b": 1}


KEYS = st.text("ab", min_size=1, max_size=3)
TREES = st.dictionaries(
    KEYS, st.recursive(st.integers(), lambda i: st.dictionaries(KEYS, i, min_size=1)), min_size=1
)


@given(TREES)
def test_nested_undoes_flatten(tree: dict[str, object]) -> None:
    assert nested(dict(flatten(tree))) == tree


def test_extract_takes_what_begins_so_and_leaves_the_rest() -> None:
    options: Options = {"file.a": 1, "file": 2, "file.b.c": 3, "files.a": 4}
    assert extract(options, "file.") == {"a": 1, "b.c": 3}
    assert options == {"file": 2, "files.a": 4}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("on", True), ("yes", True), ("y", True), ("true", True), (True, True), ("off", False),
     ("no", False), ("n", False), ("false", False), (False, False), (None, False)],
)  # fmt: skip
def test_flag_takes_qemus_words(value: object, expected: bool) -> None:
    options = {"x": value}
    assert flag(options, "x") is expected
    assert not options


@pytest.mark.parametrize("value", ["", "ON", "1", 1, 0, "nope"])
def test_flag_that_is_neither_is_refused(value: object) -> None:
    with pytest.raises(ToolError, match=r"^Parameter 'x' expects 'on' or 'off'$"):
        flag({"x": value}, "x")


def test_choice_among_words() -> None:
    assert choice({"x": "b"}, "x", ("a", "b"), "a") == "b"
    assert choice({}, "x", ("a", "b"), "a") == "a"
    with pytest.raises(ToolError, match=r"^invalid parameter value: c$"):
        choice({"x": "c"}, "x", ("a", "b"), "a")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5), ("0x10", 16), ("010", 8), (" +7", 7), ("-1", (1 << 64) - 1), (None, 9)],
)
def test_number_is_read_as_c_does(value: object, expected: int) -> None:
    assert number({"x": value}, "x", 9) == expected


@pytest.mark.parametrize("value", ["", "x", "5k", "1.5", "08", "1_000", "٣"])
def test_number_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ToolError, match=r"^Parameter 'x' expects a number$"):
        number({"x": value}, "x", 0)


def test_number_too_large_is_refused() -> None:
    with pytest.raises(ToolError, match="is out of range for parameter 'x'"):
        number({"x": str(1 << 64)}, "x", 0)


@pytest.mark.parametrize(
    ("value", "expected"), [("4k", 4096), ("1.5k", 1536), (512, 512), ("0x200", 512), (None, 9)]
)
def test_size_is_read_with_its_unit(value: object, expected: int) -> None:
    assert size({"x": value}, "x", 9) == expected


@pytest.mark.parametrize("value", ["", "x", "-1", True, 1.5])
def test_size_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ToolError, match=r"Parameter 'x' expects a non-negative number below 2\^64"):
        size({"x": value}, "x", 0)


def test_qemus_order_is_that_of_its_hash() -> None:
    # As qemu-img prints them: {"offset": 512, "driver": "raw", "size": ..., "file": {...}}.
    assert in_qemus_order(["size", "file", "driver", "offset"]) == [
        "offset",
        "driver",
        "size",
        "file",
    ]


def test_rest_of_the_options_is_refused_by_the_first_in_qemus_order() -> None:
    refuse_rest("raw", {}, protocol=False)
    with pytest.raises(ToolError, match=r"^Block format 'raw' does not support .* 'offset'"):
        refuse_rest("raw", {"size": 1, "offset": 2}, protocol=False)
    with pytest.raises(ToolError, match=r"^Block protocol 'file' doesn't support the option 'x'$"):
        refuse_rest("file", {"x": 1}, protocol=True)
