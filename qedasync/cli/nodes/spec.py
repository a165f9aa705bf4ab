"""What a file's name on the command line means: a tree of drivers and their options.

A name is a plain path, ``file:PATH``, ``blkdebug:[CONFIG]:IMAGE``, ``json:{...}`` or, with
``--image-opts``, ``driver=qed,file.filename=...``. Dotted keys and nested objects mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from qedasync.cli.options import ToolError

__all__ = ["Spec", "parse_image_opts", "parse_json", "parse_name"]

Spec: TypeAlias = dict[str, Any]
"""Driver options; a child node is another Spec."""

_PROTOCOLS = ("file", "host_device", "host_cdrom", "blkdebug")


def parse_name(name: str) -> Spec:
    """The options that a name stands for.

    Raises:
        ToolError: it means nothing here.
    """
    if name.startswith("json:"):
        return parse_json(name.removeprefix("json:"))
    if not name:
        raise ToolError("The 'file' block driver requires a file name")
    return {"file": _protocol(name)}


def _protocol(name: str) -> Spec:
    """The protocol node of a name: what has a colon before any slash names a protocol."""
    word, colon, rest = name.partition(":")
    if not colon or "/" in word:
        return {"driver": "file", "filename": name}
    if word == "file":
        return {"driver": "file", "filename": rest}
    if word in ("host_device", "host_cdrom"):
        return {"driver": word, "filename": rest}
    if word == "blkdebug":
        config, colon, image = rest.partition(":")
        if not colon:
            raise ToolError("blkdebug requires both config and image: blkdebug:[config]:image")
        below = {"driver": "blkdebug", "image": _protocol(image)}
        return {**below, "config": config} if config else below
    if rest.startswith("//") and word in ("nbd", "nbds", "nbd+unix", "nbds+unix"):
        return {"driver": "nbd", "uri": name}
    raise ToolError(f"Unknown protocol '{word}'")


def parse_json(text: str) -> Spec:
    """The options of ``json:{...}``, without the word; strings may have single quotes.

    Raises:
        ToolError: it is no JSON object, or one that says a thing twice.
    """
    import json

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ToolError("Could not parse the JSON options: JSON parse error, duplicate key")
        return found

    try:
        value = json.loads(_double_quoted(text), object_pairs_hook=once)
    except RecursionError:
        raise ToolError("Could not parse the JSON options: nested too deep") from None
    except ValueError as error:
        raise ToolError(f"Could not parse the JSON options: JSON parse error, {error}") from error
    if not isinstance(value, dict):
        raise ToolError("Invalid JSON object given")
    return crumple(dict(_flat(value)))


_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)


def _double_quoted(text: str) -> str:
    def change(found: re.Match[str]) -> str:
        inside = found[1]
        if inside is None:
            return found[0]
        return '"' + inside.replace("\\'", "'").replace('"', '\\"') + '"'

    return _STRING.sub(change, text)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Any:
    """(dotted key, value) of everything inside."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            if not inner:
                yield prefix + key, {}
            yield from _flat(inner, f"{prefix}{key}.")
        elif isinstance(inner, list):
            yield from _flat({str(i): one for i, one in enumerate(inner)}, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def parse_image_opts(text: str) -> Spec:
    """The options of ``key=value,...``; a comma in a value is written twice.

    Raises:
        ToolError: a part is no option.
    """
    flat: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = (part[2:], "off") if part.startswith("no") else (part, "on")
        if not key:
            raise ToolError("Invalid parameter ''")
        flat[key] = value
    return crumple(flat)


def _split(text: str) -> list[str]:
    parts = re.split(r"(?<!,),(?!,)", text.replace(",,", "\0")) if text else []
    return [part.replace("\0", ",") for part in parts if part]


def crumple(flat: Mapping[str, Any]) -> Spec:
    """Nested options from dotted keys.

    Raises:
        ToolError: a key is both a value and an object.
    """
    tree: Spec = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = tree
        for word in path:
            inner = place.setdefault(word, {})
            if not isinstance(inner, dict):
                raise ToolError(f"Cannot mix scalar and non-scalar keys in '{key}'")
            place = inner
        if last in place:
            raise ToolError(f"Cannot mix scalar and non-scalar keys in '{key}'")
        place[last] = value
    return tree
