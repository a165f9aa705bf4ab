"""Options of a driver in a command's ``-o``: ``key=value,...``, as ``--image-opts`` has them."""

from __future__ import annotations

import re

from qedasync.cli.options import ToolError

__all__ = ["split_options", "with_name"]

_OPTION = re.compile(r"([^=,]*)(?:=((?:[^,]|,,)*))?(?:,|$)")
_PROTOCOL = re.compile(r"[a-z][a-z0-9_+-]*:")


def split_options(text: str) -> dict[str, str]:
    """The options; a comma in a value is written twice, and a key alone is a switch."""
    options: dict[str, str] = {}
    for found in _OPTION.finditer(text):
        key, value = found.groups()
        if value is None and key:
            key, value = (key[2:], "off") if key.startswith("no") else (key, "on")
        if key:
            options[key] = value.replace(",,", ",")
    return options


def with_name(text: str, name: str) -> str:
    """The options with those that a file's name stands for.

    Raises:
        ToolError: both say which file it is.
    """
    if any(key.partition(".")[0] == "file" for key in split_options(text)):
        raise ToolError("Can't specify 'file' and 'filename' options at the same time")
    word, _, rest = name.partition(":")
    said = {"filename": name}
    if word == "blkdebug" and ":" in rest:
        config, _, image = rest.partition(":")
        said = {"driver": word, "x-image": image, **({"config": config} if config else {})}
    elif word in ("file", "host_device", "host_cdrom") and _PROTOCOL.match(name):
        said = {"driver": word, "filename": rest}
    more = [f"file.{key}={value.replace(',', ',,')}" for key, value in said.items()]
    return ",".join([text, *more])
