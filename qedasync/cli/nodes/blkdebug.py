"""blkdebug: a storage that fails or stops at named steps, as QEMU's driver of that name does.

A rule becomes active when its event happens in its state. What is active answers every request that
it matches with its error, until another event activates rules, or once if it says so.

Source: qemu 7.2 docs/devel/blkdebug.txt.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import qedasync
from qedasync.cli.options import ToolError

__all__ = ["EVENTS", "BlkdebugStorage", "Rules", "read_config", "rules_of"]

_Buffers = Sequence[Any]

EVENTS = frozenset(
    [str(event) for event in qedasync.Event]
    + """
    l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l2_alloc_cow_read
    l2_alloc.cow_read l2_alloc.write read_backing_aio read_compressed write_compressed
    vmstate_load vmstate_save reftable_load reftable_grow reftable_update refblock_load
    refblock_update refblock_update_part refblock_alloc refblock_alloc.hookup
    refblock_alloc.write refblock_alloc.write_blocks refblock_alloc.write_table
    refblock_alloc.switch_table cluster_alloc_bytes cluster_free flush_to_os pwritev_rmw.head
    pwritev_rmw.after_head pwritev_rmw.tail pwritev_rmw.after_tail pwritev pwritev_done
    empty_image_prepare l1_shrink_write_table l1_shrink_free_l2_clusters cor_write
    cluster_alloc_space
    none l1_grow.alloc_table l1_grow.write_table l1_grow.activate_table
    """.split()
)
"""Names that a rule may use; those that no QED image raises never fire."""

_IO_TYPES = {"read", "write", "write-zeroes", "discard", "flush", "block-status"}
_LIMITS = (
    "max-transfer",
    "opt-write-zero",
    "max-write-zero",
    "opt-discard",
    "max-discard",
)


_QEMU_NAMES = {str(qedasync.Event.L2_ALLOC_WRITE): "l2_update"}
"""Event -> what QEMU's QED driver calls the step, where that is another name."""


@dataclass(slots=True)
class _Inject:
    event: str
    state: int
    errno: int
    sector: int
    once: bool
    immediately: bool
    iotypes: frozenset[str]


@dataclass(slots=True)
class _SetState:
    event: str
    state: int
    new_state: int


@dataclass(slots=True)
class Rules:
    """What is to happen when.

    Attributes:
        inject, changes: in the order given.
        align: requests are to be aligned like that; only remembered.
    """

    inject: list[_Inject] = field(default_factory=list)
    changes: list[_SetState] = field(default_factory=list)
    align: int = 0


def rules_of(options: Mapping[str, Any]) -> Rules:
    """The rules in a node's options, its configuration file first.

    Raises:
        ToolError: there is no such rule, in QEMU's words.
    """
    rules = Rules()
    config = options.get("config")
    if config:
        for group, lines in read_config(str(config)):
            _add(rules, group, lines)
    for group in ("inject-error", "set-state"):
        for values in _listed(options.get(group, {})):
            _add(rules, group, values)
    rules.align = _number(options, "align", 0)
    if rules.align and (rules.align & (rules.align - 1) or rules.align > 1 << 30):
        raise ToolError(f"Cannot meet constraints with align {rules.align}")
    for name in _LIMITS:
        limit = _number(options, name, 0)
        if limit and limit % max(rules.align, 1):
            raise ToolError(f"Cannot meet constraints with {name} {limit}")
    return rules


def _listed(value: object) -> Iterator[Mapping[str, Any]]:
    if not isinstance(value, dict):
        raise ToolError("a rule of blkdebug is an object")
    for key in sorted(value, key=lambda text: (len(text), text)):
        rule = value[key]
        if not key.isdigit() or not isinstance(rule, dict):
            raise ToolError(f"Parameter '{key}' is unexpected")
        yield rule


def _add(rules: Rules, group: str, values: Mapping[str, Any]) -> None:
    known = {"event", "state"} | ({"new_state"} if group == "set-state" else _INJECT_KEYS)
    for key in values:
        if key not in known:
            raise ToolError(f"Invalid parameter '{key}'")
    event = values.get("event")
    if event is None:
        raise ToolError("Missing event name for rule")
    if event not in EVENTS:
        raise ToolError(f"invalid parameter value: {event}")
    state = _number(values, "state", 0)
    if group == "set-state":
        rules.changes.append(_SetState(str(event), state, _number(values, "new_state", 0)))
        return
    iotype = values.get("iotype")
    if iotype is not None and iotype not in _IO_TYPES:
        raise ToolError(f"invalid parameter value: {iotype}")
    once = _flag(values, "once")
    rules.inject.append(
        _Inject(
            event=str(event),
            state=state,
            errno=_number(values, "errno", 5),
            sector=_number(values, "sector", -1),
            once=once,
            immediately=_flag(values, "immediately"),
            iotypes=frozenset([iotype]) if iotype else frozenset(_IO_TYPES - {"block-status"}),
        )
    )


_INJECT_KEYS = {"errno", "sector", "once", "immediately", "iotype"}


def _number(values: Mapping[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,19}", str(value)):
        raise ToolError(f"Parameter '{key}' expects a number")
    return int(value)


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, False)
    if value in (True, "on", "yes", "true", "y"):
        return True
    if value in (False, "off", "no", "false", "n"):
        return False
    raise ToolError(f"Parameter '{key}' expects 'on' or 'off'")


_GROUP = re.compile(r'\[\s*([\w-]+)(?:\s+"[^"]*")?\s*\]')
_LINE = re.compile(r'\s*([\w-]+)\s*=\s*"([^"]*)"\s*')


def read_config(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The groups of a configuration file, in order; blocks.

    Raises:
        ToolError: it cannot be read, or is none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(1 << 20).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno or 5) if isinstance(error, OSError) else str(error)
        raise ToolError(f"Could not read blkdebug config file: {reason}") from error
    groups: list[tuple[str, dict[str, str]]] = []
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if found := _GROUP.fullmatch(line.strip()):
            if found[1] not in ("inject-error", "set-state"):
                raise ToolError(f"There is no option group '{found[1]}'")
            groups.append((found[1], {}))
        elif groups and (found := _LINE.fullmatch(line)):
            groups[-1][1][found[1]] = found[2]
        else:
            raise ToolError("Could not parse blkdebug config file")
    yield from groups


class BlkdebugStorage(qedasync.StorageBase):
    """A storage over another one, with rules and breakpoints. Owns the other one."""

    def __init__(self, inner: qedasync.Storage, rules: Rules) -> None:
        self._inner = inner
        self._rules = rules
        self._state = 1
        self._active: list[_Inject] = [one for one in rules.inject if one.event == "none"]
        self._breaks: list[tuple[str, str]] = []  # (event, tag)
        self._suspended: dict[str, asyncio.Future[None]] = {}
        self._changed = asyncio.Event()
        self.zero_fills = inner.zero_fills

    @property
    def size(self) -> int:
        return self._inner.size

    # ------------------------------------------------------------ breakpoints

    def add_break(self, event: str, tag: str) -> None:
        """Stop the next request that comes to ``event``.

        Raises:
            ToolError: there is no such event.
        """
        if event not in EVENTS:
            raise ToolError(f"Could not set a breakpoint: {os.strerror(2)}")
        self._breaks.append((event, tag))

    def remove_break(self, tag: str) -> bool:
        """Forget the breakpoints of that name, and let go what they hold; were there any?"""
        before = len(self._breaks)
        self._breaks = [one for one in self._breaks if one[1] != tag]
        return self.resume(tag) or len(self._breaks) < before

    def resume(self, tag: str) -> bool:
        """Let go what has stopped there; whether anything had."""
        waiter = self._suspended.pop(tag, None)
        if waiter is None:
            return False
        if not waiter.done():
            waiter.set_result(None)
        return True

    def is_suspended(self, tag: str) -> bool:
        """Whether a request has stopped there."""
        return tag in self._suspended

    async def wait_break(self, tag: str) -> None:
        """Wait until one has."""
        while tag not in self._suspended:
            self._changed.clear()
            await self._changed.wait()

    # ------------------------------------------------------------------ rules

    async def _step(self, event: str, iotype: str, offset: int, length: int) -> None:
        """Something is about to happen: rules, breakpoints, and the error if there is one."""
        await self._happen(event)
        for rule in self._active:
            if iotype not in rule.iotypes or not _covers(rule, offset, length):
                continue
            if rule.once:
                self._active.remove(rule)
                if rule in self._rules.inject:
                    self._rules.inject.remove(rule)
            if not rule.immediately:
                await asyncio.sleep(0)
            if rule.errno:
                raise qedasync.StorageError(rule.errno, offset=offset, length=length)
            return

    async def _happen(self, event: str) -> None:
        event = _QEMU_NAMES.get(event, event)
        matching = [
            one
            for one in self._rules.inject
            if one.event == event and one.state in (0, self._state)
        ]
        if matching:
            self._active = matching
        for change in self._rules.changes:
            if change.event == event and change.state in (0, self._state):
                self._state = change.new_state
                break
        for one in list(self._breaks):
            if one[0] == event:
                self._breaks.remove(one)
                await self._stop(one[1])

    async def _stop(self, tag: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._suspended[tag] = waiter
        self._changed.set()
        await waiter

    # ---------------------------------------------------------------- storage

    async def read_into(
        self, buffers: _Buffers, offset: int, event: qedasync.Event = qedasync.Event.READ_AIO
    ) -> None:
        await self._step(event, "read", offset, sum(map(len, buffers)))
        await self._inner.read_into(buffers, offset, event)

    async def write(
        self, buffers: _Buffers, offset: int, event: qedasync.Event = qedasync.Event.WRITE_AIO
    ) -> None:
        await self._happen(event)
        await self._step("pwritev", "write", offset, sum(map(len, buffers)))
        await self._inner.write(buffers, offset, event)

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        event: qedasync.Event = qedasync.Event.PWRITEV_ZERO,
    ) -> None:
        await self._step(event, "write-zeroes", offset, length)
        await self._inner.write_zeroes(offset, length, event)

    async def flush(self, event: qedasync.Event = qedasync.Event.FLUSH_TO_DISK) -> None:
        await self._step(event, "flush", 0, 0)
        await self._inner.flush(event)

    async def truncate(self, size: int, event: qedasync.Event = qedasync.Event.TRUNCATE) -> None:
        await self._happen(event)
        await self._inner.truncate(size, event)

    async def next_data(self, offset: int) -> int:
        return await self._inner.next_data(offset)

    async def close(self) -> None:
        for tag in list(self._suspended):
            self.resume(tag)
        await self._inner.close()


def _covers(rule: _Inject, offset: int, length: int) -> bool:
    if rule.sector < 0:
        return True
    return offset <= rule.sector * 512 < offset + length
