"""The values of driver options: what they may be, and in which order QEMU goes through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from qedasync.cli.options import ToolError

__all__ = [
    "Options",
    "choice",
    "extract",
    "flag",
    "flatten",
    "in_qemus_order",
    "nested",
    "number",
    "refuse_rest",
    "size",
    "text",
]

Options: TypeAlias = dict[str, Any]
"""Options of a node; those of a child, ``file``, have keys like ``file.filename``."""

_TRUE, _FALSE = ("on", "yes", "true", "y"), ("off", "no", "false", "n")


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything inside, the elements of lists by their number.

    What is written with dots itself comes first: the longer form counts, where both are there.
    """
    nested_ones = []
    for key, inner in value.items():
        if isinstance(inner, dict | list) and inner:
            nested_ones.append((key, inner))
        else:
            yield prefix + key, inner
    for key, inner in nested_ones:
        if isinstance(inner, list):
            inner = {str(number): one for number, one in enumerate(inner)}
        yield from flatten(inner, f"{prefix}{key}.")


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same as objects in objects."""
    tree: dict[str, Any] = {}
    for key, value in options.items():
        *path, last = key.split(".")
        place = tree
        for word in path:
            inner = place.setdefault(word, {})
            if not isinstance(inner, dict):
                inner = place[word] = {}
            place = inner
        place[last] = value
    return tree


def extract(options: Options, prefix: str) -> Options:
    """Take out those that begin with ``prefix``, which goes."""
    keys = [key for key in options if key.startswith(prefix)]
    return {key.removeprefix(prefix): options.pop(key) for key in keys}


def text(value: Any) -> str | None:
    """A value as the words of a command line; None for what has none and is passed over."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.17g}"
    return str(value) if isinstance(value, int) else None


def flag(options: Options, key: str, default: bool = False) -> bool:
    """Take a flag out.

    Raises:
        ToolError: it is neither on nor off.
    """
    word = text(options.pop(key, None))
    if word is None:
        return default
    if word not in _TRUE + _FALSE:
        raise ToolError(f"Parameter '{key}' expects 'on' or 'off'")
    return word in _TRUE


def choice(options: Options, key: str, among: Iterable[str], default: str) -> str:
    """Take a word out.

    Raises:
        ToolError: it is none of those.
    """
    word = text(options.pop(key, None))
    if word is None:
        return default
    if word not in among:
        raise ToolError(f"invalid parameter value: {word}")
    return word


def number(options: Options, key: str, default: int) -> int:
    """Take a number out; it may be written as C does.

    Raises:
        ToolError: it is none.
    """
    word = text(options.pop(key, None))
    if word is None:
        return default
    try:
        plain = word.lstrip(" \t\n\v\f\r")
        sign, digits = (-1, plain[1:]) if plain[:1] == "-" else (1, plain.removeprefix("+"))
        if not digits[:1].isdigit() or not digits.isascii() or "_" in digits:
            raise ValueError
        octal = digits[0] == "0" and digits.isdigit()
        value = sign * int(digits, 8 if octal else 0)
    except ValueError:
        raise ToolError(f"Parameter '{key}' expects a number") from None
    if abs(value) >= 1 << 64:
        raise ToolError(f"Value '{word}' is out of range for parameter '{key}'")
    return value % (1 << 64)


def size(options: Options, key: str, default: int) -> int:
    """Take a number of bytes out, as ``64k``.

    Raises:
        ToolError: it is none.
    """
    from qedasync import RequestError
    from qedasync.cli.sizes import number as bytes_of

    word = text(options.pop(key, None))
    if word is None:
        return default
    try:
        value = bytes_of(word)
    except RequestError:
        if word.strip().isdigit():
            value = 1 << 64
        else:
            raise ToolError(
                f"Parameter '{key}' expects a non-negative number below 2^64\nOptional suffix k, M,"
                " G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
            ) from None
    if value >= 1 << 64:
        raise ToolError(f"Value '{word}' is out of range for parameter '{key}'")
    return value


def refuse_rest(driver: str, options: Options, *, protocol: bool) -> None:
    """Raise for an option that nobody has taken."""
    if not options:
        return
    key = in_qemus_order(options)[0]
    if protocol:
        raise ToolError(f"Block protocol '{driver}' doesn't support the option '{key}'")
    raise ToolError(f"Block format '{driver}' does not support the option '{key}'")


_BUCKETS = 512


def in_qemus_order(keys: Iterable[str]) -> list[str]:
    """Keys in the order QEMU goes through them: which of many wrong ones is told, and how JSON
    with several comes out. That is by the hash that the "trivial database" uses, the later before
    the earlier where two fall together.
    """
    return sorted(reversed(list(keys)), key=_bucket)


def _bucket(key: str) -> int:
    content = key.encode("utf-8", "surrogateescape")
    value = 0x238F13AF * len(content)
    for at, byte in enumerate(content):
        value += byte << (at * 5 % 24)
    return (1103515243 * value + 12345) % (1 << 32) % _BUCKETS
