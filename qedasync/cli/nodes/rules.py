"""The rules of a blkdebug node: from its options, and from a configuration file.

::

    [inject-error]
    event = "l2_update"
    errno = "28"
    once = "on"

Source: qemu 7.2 docs/devel/blkdebug.txt.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from qedasync.cli.nodes.spec import check_id
from qedasync.cli.nodes.values import (
    Options,
    choice,
    extract,
    flag,
    in_qemus_order,
    number,
    size,
    text,
)
from qedasync.cli.options import ToolError

__all__ = ["EVENTS", "STRONG", "Inject", "Rules", "SetState", "read_config", "take_rules"]

EVENTS = frozenset(
    """
    l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table
    l2_load l2_update l2_update_compressed l2_alloc_cow_read l2_alloc_write
    read_aio read_backing_aio read_compressed write_aio write_compressed
    vmstate_load vmstate_save cow_read cow_write
    reftable_load reftable_grow reftable_update
    refblock_load refblock_update refblock_update_part refblock_alloc refblock_alloc_hookup
    refblock_alloc_write refblock_alloc_write_blocks refblock_alloc_write_table
    refblock_alloc_switch_table
    cluster_alloc cluster_alloc_bytes cluster_free cluster_alloc_space
    flush_to_os flush_to_disk
    pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail
    pwritev pwritev_zero pwritev_done
    empty_image_prepare l1_shrink_write_table l1_shrink_free_l2_clusters cor_write none
    """.split()
)
"""Names that a rule may use; most of them no QED image ever comes to."""

STRONG = (
    "config",
    "inject-error.",
    "set-state.",
    "align",
    "max-transfer",
    "opt-write-zero",
    "max-write-zero",
    "opt-discard",
    "max-discard",
)
"""Options that change what the node does."""

IO_TYPES = ("read", "write", "write-zeroes", "discard", "flush", "block-status")
_PERMISSIONS = ("consistent-read", "write", "write-unchanged", "resize")
_ANYWHERE = (1 << 64) - 1
_MAX_INT = (1 << 31) - 1


@dataclass(slots=True, eq=False)
class Inject:
    """Answer requests with an error, from an event on.

    Attributes:
        state: only in that one; 0 for any.
        errno: 0 for none: a rule that only takes the place of another one.
        offset: only requests that touch this byte of the file; None for all.
        once: only one request.
        immediately: the request fails without giving others a turn.
        iotypes: only such requests.
    """

    event: str
    state: int = 0
    errno: int = 5
    offset: int | None = None
    once: bool = False
    immediately: bool = False
    iotypes: frozenset[str] = frozenset(IO_TYPES) - {"block-status"}

    def matches(self, iotype: str, offset: int, length: int) -> bool:
        """Whether it is about a request."""
        inside = self.offset is None or offset <= self.offset < offset + length
        return inside and iotype in self.iotypes


@dataclass(slots=True, eq=False)
class SetState:
    """Go over to another state at an event."""

    event: str
    state: int
    new_state: int


@dataclass(slots=True)
class Rules:
    """What is to happen when.

    Attributes:
        inject, changes: in the order given.
        limits: align, max-transfer and the like, in bytes.
    """

    inject: list[Inject] = field(default_factory=list)
    changes: list[SetState] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def align(self) -> int:
        return max(1, self.limits.get("align", 0))

    def check_limits(self) -> None:
        """Raise ToolError for limits that do not go together."""
        limits = self.limits
        align = limits["align"]
        if align >= _MAX_INT or align & (align - 1):
            raise ToolError(f"Cannot meet constraints with align {align}")
        units = {
            "max-transfer": self.align,
            "opt-write-zero": self.align,
            "max-write-zero": max(self.align, limits["opt-write-zero"]),
            "opt-discard": self.align,
            "max-discard": max(self.align, limits["opt-discard"]),
        }
        for name, unit in units.items():
            if limits[name] >= _MAX_INT or limits[name] % unit:
                raise ToolError(f"Cannot meet constraints with {name} {limits[name]}")


def take_rules(options: Options, *, writable: bool) -> Rules:
    """Take a node's options out, the rules of its configuration file first; blocks.

    Raises:
        ToolError: there is no such rule, in QEMU's words.
    """
    rules = Rules()
    config = text(options.pop("config", None))
    if config is not None:
        for group, values in read_config(config):
            _add(rules, group, values, "Invalid parameter '{key}'")
    for group in ("inject-error", "set-state"):
        _take_group(rules, group, extract(options, f"{group}."))
    for name in STRONG[3:]:
        rules.limits[name] = size(options, name, 0)
    taken = _take_permissions(options, "take-child-perms")
    if not writable and {"write", "write-unchanged"} & set(taken):
        raise ToolError("Block node is read-only")
    _take_permissions(options, "unshare-child-perms")
    return rules


def _take_permissions(options: Options, name: str) -> list[str]:
    """Take a list of permissions; nobody shares our nodes, so they change nothing."""
    words = [str(text(word)) for word in extract(options, f"{name}.").values()]
    for word in words:
        if word not in _PERMISSIONS:
            raise ToolError(f"Parameter 'null' does not accept value '{word}'")
    return words


def _take_group(rules: Rules, group: str, own: Options) -> None:
    """The rules of one kind: ``event``, ``errno``... of a single one, or ``0.event`` and so on."""
    single = {key: own.pop(key) for key in _KEYS[group] if key in own}
    refusal = f"[{group}] section doesn't support the option '{{key}}'"
    if single:
        _add(rules, group, single, refusal)
    at = 0
    while one := extract(own, f"{at}."):
        _add(rules, group, one, refusal)
        at += 1
    if own:
        raise ToolError(f"Unused option '{in_qemus_order(own)[0]}' for [{group}]")


_KEYS = {
    "inject-error": ("event", "state", "errno", "sector", "once", "immediately", "iotype"),
    "set-state": ("event", "state", "new_state"),
}


def _add(rules: Rules, group: str, values: Options, refusal: str) -> None:
    unknown = [key for key in in_qemus_order(values) if key not in _KEYS[group]]
    if unknown:
        raise ToolError(refusal.format(key=unknown[0]))
    state = number(values, "state", 0)
    if group == "set-state":
        new_state = number(values, "new_state", 0)
        rules.changes.append(SetState(_take_event(values), state, new_state))
        return
    sector = number(values, "sector", _ANYWHERE)
    rule = Inject(
        "",
        state=state,
        errno=number(values, "errno", 5),
        offset=None if sector == _ANYWHERE else sector * 512,
        once=flag(values, "once"),
        immediately=flag(values, "immediately"),
    )
    rule.event = _take_event(values)
    iotype = choice(values, "iotype", IO_TYPES, "")
    if iotype:
        rule.iotypes = frozenset([iotype])
    rules.inject.append(rule)


def _take_event(values: Options) -> str:
    event = choice(values, "event", EVENTS, "")
    if not event:
        raise ToolError("Missing event name for rule")
    return event


_GROUP = re.compile(r'\[\s*([^\s"\]]+)(?:\s+"([^"]*)")?\s*\]')
_LINE = re.compile(r'\s*(\S+)(?:\s*=\s*"([^"]*)")?')


def read_config(path: str) -> list[tuple[str, Options]]:
    """The groups of a configuration file, in order; blocks.

    Raises:
        ToolError: it cannot be read, or is none.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(1 << 20).splitlines()
    except (OSError, ValueError) as error:
        number_ = getattr(error, "errno", None) or 22
        reason = os.strerror(number_)
        raise ToolError(f"Could not read blkdebug config file: {reason}") from error
    groups: list[tuple[str, Options]] = []
    ids: set[tuple[str, str]] = set()
    for line in lines:
        if line and not line.startswith("#"):
            _read_line(line, groups, ids)
    return groups


def _read_line(line: str, groups: list[tuple[str, Options]], ids: set[tuple[str, str]]) -> None:
    if found := _GROUP.match(line):
        group, name = found.groups()
        if group not in _KEYS:
            raise ToolError(f"There is no option group '{group}'")
        if name is not None:
            check_id(name)
            if (group, name) in ids:
                raise ToolError(f"Duplicate ID '{name}' for {group}")
            ids.add((group, name))
        groups.append((group, {}))
    elif not groups:
        raise ToolError("no group defined")
    elif found := _LINE.match(line):
        # Without spaces around its "=", a line is one word, and that is no option.
        groups[-1][1][found[1]] = found[2] or ""
    else:
        raise ToolError("parse error")
