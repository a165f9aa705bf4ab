"""``-o name=value,...``: what a new image can be told, for ``create``, ``convert`` and the like.

A comma in a value is written twice. The names, their order and the messages are qemu-img's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from qedasync.cli.options import ToolError
from qedasync.cli.sizes import number
from qedasync.errors import RequestError

__all__ = [
    "Values",
    "asks_for_help",
    "check_geometry",
    "formatting_line",
    "help_text",
    "join_words",
    "parse_format_options",
]

Values: TypeAlias = dict[str, int | str | bool]
"""Option -> value, in the order of the formatting line; only what is set."""


class _Known(NamedTuple):
    """An option there is.

    Attributes:
        kind: "str", "size" or "bool".
        default: what it is if nobody says anything, or None for unset.
    """

    name: str
    kind: str
    help: str
    default: int | None = None


_SIZE = _Known("size", "size", "Virtual disk size")
_FORMATS: dict[str, tuple[_Known, ...]] = {
    "raw": (_SIZE,),
    "qed": (
        _SIZE,
        _Known("backing_file", "str", "File name of a base image"),
        _Known("backing_fmt", "str", "Image format of the base image"),
        _Known("cluster_size", "size", "Cluster size (in bytes)", 65536),
        _Known("table_size", "size", "L1/L2 table size (in clusters)"),
    ),
}
_FILE = (
    _Known("nocow", "bool", "Turn off copy-on-write (valid only on btrfs)"),
    _Known("preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"),
    _Known("extent_size_hint", "size", "Extent size hint for the image file, 0 to disable"),
)
_KIND_SHOWN = {"str": "str", "size": "size", "bool": "bool (on/off)"}

_ON = ("on", "yes", "true", "y")
_OFF = ("off", "no", "false", "n")

_MIN_CLUSTER, _MAX_CLUSTER = 4096, 67108864
_MIN_TABLE, _MAX_TABLE = 1, 16


def join_words(words: Sequence[str]) -> str:
    """The values of several ``-o`` as one.

    Raises:
        ToolError: one begins or ends with a lone comma.
    """
    for word in words:
        if not word or word.startswith(",") or (len(word) - len(word.rstrip(","))) % 2:
            raise ToolError(f"Invalid option list: {word}")
    return ",".join(words)


def asks_for_help(text: str) -> bool:
    """Whether ``help`` or ``?`` is among the options."""
    return any(item in ("help", "?") for item in _items(text))


def help_text(fmt: str, *, with_file: bool) -> str:
    """What ``-o help`` prints.

    Args:
        with_file: whether a file name was given, so that its options are known, too.
    """
    known = (*_known(fmt), *(_FILE if with_file else ()))
    lines = [f"Supported {'' if with_file else fmt + ' '}options:"]
    lines += [
        f"  {f'{option.name}=<{_KIND_SHOWN[option.kind]}>':<22} - {option.help}"
        for option in sorted(known, key=lambda option: option.name)
    ]
    if not with_file:
        lines += [
            "",
            "The protocol level may support further options.",
            "Specify the target filename to include those options.",
        ]
    return "\n".join(lines)


def parse_format_options(text: str, fmt: str, filename: str) -> Values:
    """The values of ``-o`` for a new image, with the defaults.

    Args:
        text: as :func:`join_words` gives it.
        filename: what messages begin with.

    Raises:
        ToolError: there is no such format or option, or it cannot have that value.
    """
    known = (*_known(fmt, filename), *_FILE)
    found: Values = {}
    for item in _items(text):
        name, equals, value = item.partition("=")
        if not equals:
            name, value = (name[2:], "off") if name.startswith("no") else (name, "on")
        option = next((option for option in known if option.name == name), None)
        if option is None:
            raise ToolError(f"{filename}: Invalid parameter '{name}'")
        found[name] = _converted(option, value, filename)
    values: Values = {}
    for option in known:
        if option.name in found:
            values[option.name] = found[option.name]
        elif option.default is not None:
            values[option.name] = option.default
    return values


def formatting_line(filename: str, fmt: str, values: Mapping[str, int | str | bool]) -> str:
    """``Formatting 'a.qed', fmt=qed size=...``."""
    order = [option.name for option in (*_known(fmt), *_FILE)]
    shown = [f"{name}={_shown(values[name])}" for name in order if name in values]
    return " ".join([f"Formatting '{filename}', fmt={fmt}", *shown])


def check_geometry(filename: str, size: int, values: Mapping[str, int | str | bool]) -> None:
    """Whether an image can have this geometry, in QEMU's words.

    Raises:
        ToolError: it cannot.
    """
    cluster_size, table_size = int(values["cluster_size"]), int(values.get("table_size", 4))
    problem = None
    # Differs from QEMU: it looks at the low 32 bits.
    if not _is_power_within(cluster_size, _MIN_CLUSTER, _MAX_CLUSTER):
        problem = f"cluster size must be within range [{_MIN_CLUSTER}, {_MAX_CLUSTER}]"
    elif not _is_power_within(table_size, _MIN_TABLE, _MAX_TABLE):
        problem = f"table size must be within range [{_MIN_TABLE}, {_MAX_TABLE}]"
    if problem:
        raise ToolError(f"{filename}: QED {problem} and power of 2")
    entries = table_size * cluster_size // 8
    limit = entries * entries * cluster_size
    shown = limit % (1 << 64)  # as QEMU computes it; where it wraps, 0 bytes are all there can be
    if size > shown:
        raise ToolError(
            f"{filename}: QED image size must be a non-zero multiple of cluster size and less than"
            f" {shown} bytes"
        )


def _is_power_within(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0


def _known(fmt: str, filename: str | None = None) -> tuple[_Known, ...]:
    if fmt not in _FORMATS:
        where = "" if filename is None else f"{filename}: "
        if fmt == "blkdebug":
            raise ToolError(f"{where}Format driver '{fmt}' does not support image creation")
        raise ToolError(f"{where}Unknown file format '{fmt}'")
    return _FORMATS[fmt]


def _items(text: str) -> list[str]:
    """Split at single commas; of a double one one stays."""
    hidden = "\0"
    parts = text.replace(",,", hidden).split(",")
    return [part.replace(hidden, ",") for part in parts if part]


def _converted(option: _Known, value: str, filename: str) -> int | str | bool:
    if option.kind == "str":
        return value
    if option.kind == "bool":
        if value not in (*_ON, *_OFF):
            raise ToolError(f"{filename}: Parameter '{option.name}' expects 'on' or 'off'")
        return value in _ON
    try:
        size = number(value)
    except RequestError:
        size = -1
    if not 0 <= size < 1 << 64:
        raise ToolError(
            f"{filename}: Parameter '{option.name}' expects a non-negative number below 2^64"
            " Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-"
            " and exabytes, respectively."
        )
    return size


def _shown(value: int | str | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")
