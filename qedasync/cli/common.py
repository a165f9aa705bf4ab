"""Options that many verbs have, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qedasync.cli.options import Option, Parsed, ToolError

if TYPE_CHECKING:
    from qedasync.cli.nodes import Node

__all__ = [
    "BACKING",
    "BACKING_FORMATS",
    "CACHES",
    "FORCE_SHARE",
    "FOREIGN",
    "FORMAT",
    "FORMATS",
    "IMAGE_OPTS",
    "OBJECT",
    "OUTPUT",
    "QUIET",
    "as_json",
    "beside",
    "cache_word",
    "is_path",
    "one_name",
    "open_named",
    "refuse_object",
    "wants_json",
]

FORMATS = ("qed", "raw")
FOREIGN = ("qcow2", "vmdk", "vdi", "vhdx", "vpc", "qcow", "parallels")
"""Read by means of qemu-nbd."""
BACKING_FORMATS = FORMATS + FOREIGN
CACHES = ("none", "writeback", "unsafe", "directsync", "writethrough")

FORMAT = Option("f", "format", "FMT", "the image's format; looked for unless said", FORMATS)
IMAGE_OPTS = Option("", "image-opts", "", "the name is options: driver=qed,file.filename=...")
OBJECT = Option("", "object", "OBJECT", "refused: there are no objects here")
FORCE_SHARE = Option("U", "force-share", "", "open it though another program writes it")
OUTPUT = Option("", "output", "FORM", "the output's form", ("human", "json"))
QUIET = Option("q", "", "", "print nothing but errors")
BACKING = Option(
    "",
    "backing",
    "POLICY",
    "which files an image may name as its backing file; same-dir unless said,"
    " or what QEDASYNC_BACKING says",
    ("deny", "same-dir", "allow:GLOB", "any"),
)


def refuse_object(parsed: Parsed) -> None:
    """Raise for ``--object``: what qemu-img makes of one (secrets, TLS) has no use here."""
    for text in parsed.all("object"):
        kind = text.partition(",")[0].removeprefix("qom-type=")
        if not kind or "=" in kind:
            raise ToolError("Parameter 'qom-type' is missing")
        raise ToolError(f"Parameter 'qom-type' does not accept value '{kind}'")


def one_name(parsed: Parsed) -> str:
    """The one image that the verb is about."""
    if len(parsed.names) != 1:
        raise ToolError("Expecting one image file name")
    return parsed.names[0]


def wants_json(parsed: Parsed) -> bool:
    """What ``--output`` says; raises ToolError if that is neither form."""
    form = parsed.last("output", "human")
    if form not in ("human", "json"):
        raise ToolError("--output must be used with human or json as argument.")
    return form == "json"


def cache_word(parsed: Parsed, key: str, what: str = "cache", default: str = "writeback") -> str:
    """The cache mode that an option names.

    Args:
        what: what the message calls it.
    """
    word = parsed.last(key, default) or ""
    if word not in CACHES:
        raise ToolError(f"Invalid {what} option: {word}")
    return word


async def open_named(parsed: Parsed, name: str, **access: Any) -> Node:
    """Open an image as the options say.

    Args:
        access: fields of :class:`~qedasync.cli.nodes.Access`.

    Raises:
        ToolError: it cannot be opened.
    """
    from qedasync.cli.nodes import access_from, open_node

    fmt, image_opts = parsed.last("f"), parsed.has("image-opts")
    if fmt is not None and image_opts:
        raise ToolError("--image-opts and --format are mutually exclusive")
    return await open_node(name, fmt, access_from(parsed, **access), image_opts=image_opts)


def beside(image: str, name: str) -> str:
    """The path of the backing file that an image names: a relative one starts where the image is.

    The names of other protocols are answered as they are; see :func:`is_path`.
    """
    directory = image[: image.rfind("/") + 1]
    return name if name.startswith("/") or not is_path(name) else directory + name


def is_path(name: str) -> bool:
    """Whether a name is a plain path, not one like ``nbd://...`` or ``json:...``."""
    return ":" not in name.partition("/")[0]


_ESCAPE = r"\\\\|\\u(d[89ab]..\\ud[c-f]..)|\\u(d[89a-f]..)|\\u(....)"  # in lower-case JSON


def as_json(value: object, *, indent: int | None = 4) -> str:
    """JSON as qemu-img lays it out, on one line if ``indent`` is None.

    A byte of a name that is no text becomes U+FFFD.
    """
    import json
    import re

    def spelled(found: re.Match[str]) -> str:
        pair, lone, other = found.groups()
        if lone:
            return r"\uFFFD"
        return rf"\u{(pair or other).upper().replace('U', 'u')}" if pair or other else found[0]

    text = json.dumps(value, indent=indent).replace("\x7f", r"\u007f")
    return re.sub(_ESCAPE, spelled, text)
