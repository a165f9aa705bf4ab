"""JSON as QEMU's names have it: strings in single quotes too, and QEMU's words for what is wrong.

Python's own parser would do but for those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from qedasync.cli.options import ToolError

__all__ = ["parse"]

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
  | (?P<mark>[\[\]{},:])
  | (?P<string>"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*"|'(?:[^'\\\x00-\x1f]|\\[^\x00-\x1f])*')
  | (?P<number>-?(?:0(?![0-9])|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![.eE0-9]))
  | (?P<word>[a-z]+)
    """,
    re.VERBOSE,
)
_STRAY = re.compile(
    r"""
    ["'][^\x00-\x1f]*
  | -?0[0-9]
  | -?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[eE][+-]?.
  | -?(?:0|[1-9][0-9]*)\..
  | -?[^0-9]
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\u(d[89ab]..)\\u(d[c-f]..)|\\u(.{0,4})|\\(.)|[^\\]+", re.DOTALL | re.I)
_ESCAPES = dict(zip("\"'\\/bfnrt", "\"'\\/\b\f\n\r\t", strict=True))
_WORDS = {"true": True, "false": False, "null": None}
_MAX_DEPTH = 1024


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


def parse(text: str) -> Any:
    """The one value in ``text``.

    Raises:
        ToolError: there is none, or more, or it is wrong.
    """
    tokens: list[_Token] = []
    rest = _balanced(text, tokens)
    if not tokens:
        raise ToolError("Could not parse the JSON options: Expecting a JSON value")
    value = _Parser(iter(tokens)).value()
    if rest.strip(" \t\r\n"):
        raise ToolError("Could not parse the JSON options: Expecting at most one JSON value")
    return value


def _wrong(what: str) -> NoReturn:
    raise ToolError(f"Could not parse the JSON options: JSON parse error, {what}")


def _balanced(text: str, tokens: list[_Token]) -> str:
    """Collect the tokens of the first value; answers what comes after it."""
    at = depth = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            stray = _STRAY.match(text, at)
            _wrong(f"stray '{stray[0] if stray else text[at:]}'")
        at = found.end()
        kind, word = str(found.lastgroup), found[0]
        if kind == "space":
            continue
        tokens.append(_Token(kind, word))
        depth += (word in "[{") - (word in "]}") if kind == "mark" else 0
        if depth > _MAX_DEPTH:
            _wrong("JSON nesting depth limit exceeded")
        if depth <= 0:
            break
    return text[at:]


class _Parser:
    def __init__(self, tokens: Iterator[_Token]) -> None:
        self._tokens = tokens

    def _next(self) -> _Token:
        token = next(self._tokens, None)
        if token is None:
            _wrong("premature EOI")
        return token

    def value(self, token: _Token | None = None) -> Any:
        token = token or self._next()
        if token.text == "{":
            return self._object()
        if token.text == "[":
            return self._array()
        return _scalar(token)

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        token = self._next()
        while token.text != "}":
            key = self.value(token)
            if not isinstance(key, str):
                _wrong("key is not a string in object")
            if self._next().text != ":":
                _wrong("missing : in object pair")
            value = self.value()
            if key in found:
                _wrong("duplicate key")
            found[key] = value
            token = self._next()
            if token.text == ",":
                token = self._next()
                if token.text == "}":
                    _wrong("expecting value")
            elif token.text != "}":
                _wrong("expected separator in dict")
        return found

    def _array(self) -> list[Any]:
        found: list[Any] = []
        token = self._next()
        while token.text != "]":
            found.append(self.value(token))
            token = self._next()
            if token.text == ",":
                token = self._next()
                if token.text == "]":
                    _wrong("expecting value")
            elif token.text != "]":
                _wrong("expected separator in list")
        return found


def _scalar(token: _Token) -> Any:
    if token.kind == "string":
        return "".join(map(_unescaped, _ESCAPE.finditer(token.text[1:-1])))
    if token.kind == "number":
        return _number(token.text)
    if token.kind == "word":
        if token.text not in _WORDS:
            _wrong(f"invalid keyword '{token.text}'")
        return _WORDS[token.text]
    _wrong("expecting value")


def _number(text: str) -> int | float:
    """A whole number where it is one, as QEMU prints it."""
    try:
        whole = int(text)
        if -(1 << 63) <= whole < 1 << 64:
            return whole
    except ValueError:
        pass
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 1e17 else value


def _unescaped(found: re.Match[str]) -> str:
    high, low, code, letter = found.groups()
    if high:
        return bytes.fromhex(high + low).decode("utf-16-be")
    if letter is not None:
        if letter not in _ESCAPES:
            _wrong("invalid escape sequence in string")
        return _ESCAPES[letter]
    if code is None:
        return found[0]
    if not re.fullmatch(r"[0-9a-fA-F]{4}", code):
        _wrong("\\u must be followed by 4 hex digits" if len(code) == 4 else "premature EOI")
    char = chr(int(code, 16))
    if "\ud800" <= char <= "\udfff" or char >= "\ufffe":
        _wrong(f"\\u{code} is not a valid Unicode character")
    return char if char != "\0" else "\udcc0\udc80"  # the two bytes that QEMU makes of it
