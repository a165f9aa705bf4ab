"""JSON as QEMU reads it; what it says of wrong ones is compared in ``test_specs``."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.cli.nodes.json_words import parse
from qedasync.cli.options import ToolError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffe\uffff")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_any_value_comes_back(value: object, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a'", "a"),
        ("""'say "a"'""", 'say "a"'),
        (r"'it\'s'", "it's"),
        (r'"\'\"\\\/\n\t"', "'\"\\/\n\t"),
        (r'"\u00e9\ud83d\ude00"', "é😀"),
        (r'"\u0000"', "\udcc0\udc80"),
        ("1e3", 1000),
        ("512.0", 512),
        ("0.5", 0.5),
        ("18446744073709551616", float(1 << 64)),
        (" { 'a' : [ true , null ] } ", {"a": [True, None]}),
    ],
)
def test_words_of_qemus_own_are_read(text: str, value: object) -> None:
    found = parse(text)
    assert (found, type(found)) == (value, type(value))


@given(st.text("{}[]:,'\"\\ue09.-+ truefalsn", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ToolError):
        parse(text)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ToolError, match="nesting depth limit exceeded"):
        parse("[" * 100_000)
