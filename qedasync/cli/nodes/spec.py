"""What a file's name on the command line means: options of nodes, each with its driver.

A name is a plain path, ``file:PATH``, ``blkdebug:[CONFIG]:IMAGE``, ``json:{...}`` or, with
``--image-opts``, ``driver=qed,file.filename=...``. Dotted keys and nested objects mean the same.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any

from qedasync.cli.nodes.values import Options, flatten
from qedasync.cli.options import ToolError

__all__ = ["check_id", "parse_image_opts", "parse_json", "protocol_of", "take_name"]

_PREFIXES = {
    "file": "file",
    "host_device": "host_device",
    "host_cdrom": "host_cdrom",
    "blkdebug": "blkdebug",
    "nbd": "nbd",
    "nbd+tcp": "nbd",
    "nbd+unix": "nbd",
    "nbds": "nbd",
    "nbds+unix": "nbd",
}


def parse_json(name: str) -> Options:
    """The options of ``json:{...}``.

    Raises:
        ToolError: it is no JSON object, or one that says a thing twice.
    """
    from qedasync.cli.nodes import json_words

    value: Any = json_words.parse(name.removeprefix("json:"))
    if not isinstance(value, dict):
        raise ToolError("Invalid JSON object given")
    return dict(flatten(value))


def parse_image_opts(text: str) -> Options:
    """The options of ``key=value,...``; a comma in a value is written twice.

    What comes first may be a value alone, that of ``file``.

    Differs from QEMU: no warning of flags without a value, which it will not take one day; one line
    on stderr is an error.

    Raises:
        ToolError: an option cannot be one.
    """
    options: Options = {}
    at = 0
    while at < len(text):
        found = re.compile(r"[^=,]*").match(text, at)
        assert found is not None
        key, end = found[0], found.end()
        if text[end : end + 1] == "=":
            value, at = _value(text, end + 1)
        elif not at:
            key = "file"
            value, at = _value(text, at)
        else:
            at = end + 1
            key, value = (key[2:], "off") if key.startswith("no") else (key, "on")
        options[key] = value
    check_id(options.get("id", "x"))
    return options


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins there, and where the next option does."""
    found = re.compile(r"(?:[^,]|,,)*").match(text, at)
    assert found is not None
    return found[0].replace(",,", ","), found.end() + 1


def check_id(word: str) -> None:
    """Raise ToolError for what cannot name a group of options."""
    if not re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9._]*", word):
        raise ToolError("Parameter 'id' expects an identifier")


def protocol_of(name: str, *, prefixes: bool = True) -> str:
    """The driver of a protocol that a name is for.

    Args:
        prefixes: a word before a colon says which; else, or without one, the file does.

    Raises:
        ToolError: there is no such protocol.
    """
    word, colon, _ = name.partition(":")
    if not prefixes or not colon or "/" in word:
        return _host_driver(name)
    if word not in _PREFIXES:
        raise ToolError(f"Unknown protocol '{word}'")
    return _PREFIXES[word]


def _host_driver(path: str) -> str:
    """The driver for what the path leads to; ``file`` where there is nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "file"
    return "host_device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "file"


def take_name(driver: str, name: str, options: Options) -> None:
    """Put what a name says into the options of the protocol that it is for.

    Raises:
        ToolError: the options say it already, or the driver cannot make anything of the name.
    """
    if driver == "blkdebug":
        _take_blkdebug(name, options)
    elif driver == "nbd":
        _take_nbd(name, options)
    elif "filename" in options:
        raise ToolError("Can't specify 'file' and 'filename' options at the same time")
    else:
        options["filename"] = name.removeprefix(f"{driver}:")


def _take_blkdebug(name: str, options: Options) -> None:
    if not name.startswith("blkdebug:"):
        options["x-image"] = name
        return
    config, colon, image = name.removeprefix("blkdebug:").partition(":")
    if not colon:
        raise ToolError("blkdebug requires both config file and image path")
    if config:
        options["config"] = config
    options["x-image"] = image


def _take_nbd(name: str, options: Options) -> None:
    from qedasync.cli.nodes.remote import nbd_options

    if {"host", "port", "path"} & set(options):
        raise ToolError("host/port/path and file names may not be specified at the same time")
    options.update(nbd_options(name))
