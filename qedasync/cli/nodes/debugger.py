"""What a blkdebug knows: which errors are active in which state, and which requests stand still."""

from __future__ import annotations

import asyncio
import os

import qedasync
from qedasync.cli.nodes.rules import EVENTS, Inject, Rules
from qedasync.cli.options import ToolError

__all__ = ["Debugger"]


class Debugger:
    """Rules and breakpoints of one node.

    An event makes the rules for it active, in place of those before. What is active answers every
    request that it matches with its error, or one request if it says so.
    """

    def __init__(self, rules: Rules) -> None:
        self._inject = list(rules.inject)
        self._changes = rules.changes
        self._state = 1
        self._active: list[Inject] = []
        self._breaks: list[tuple[str, str]] = []  # (event, tag), the latest first
        self._suspended: list[tuple[str, asyncio.Future[None]]] = []  # likewise
        self._changed = asyncio.Event()
        self._activate("none")

    # ------------------------------------------------------------ breakpoints

    def add_break(self, event: str, tag: str) -> None:
        """Stop the next request that comes to ``event``.

        Raises:
            ToolError: there is no such event.
        """
        if event not in EVENTS:
            raise ToolError(f"Could not set a breakpoint: {os.strerror(2)}")
        self._breaks.insert(0, (event, tag))

    def remove_break(self, tag: str) -> bool:
        """Forget the breakpoints of that name, and let go what they hold; were there any?"""
        kept = [one for one in self._breaks if one[1] != tag]
        found = len(kept) < len(self._breaks)
        self._breaks = kept
        while self.resume(tag):
            found = True
        return found

    def remove_all_breaks(self) -> None:
        """Forget all breakpoints, and let go all that has stopped."""
        self._breaks.clear()
        for tag, _ in list(self._suspended):
            self.resume(tag)

    def resume(self, tag: str) -> bool:
        """Let go the request that stopped there last; whether there was one."""
        found = next((one for one in self._suspended if one[0] == tag), None)
        if found is None:
            return False
        self._suspended.remove(found)
        if not found[1].done():
            found[1].set_result(None)
        return True

    def is_suspended(self, tag: str) -> bool:
        """Whether a request has stopped there."""
        return any(one[0] == tag for one in self._suspended)

    async def wait_break(self, tag: str) -> None:
        """Wait until one has."""
        while not self.is_suspended(tag):
            self._changed.clear()
            await self._changed.wait()

    # ------------------------------------------------------------------ rules

    async def happen(self, event: str) -> None:
        """Something has come to an event: rules become active, the state changes, and if there are
        breakpoints, it stops at all of them at once and goes on when each has let it go.
        """
        states = (0, self._state)
        change = next(
            (one for one in self._changes if one.event == event and one.state in states), None
        )
        self._activate(event)
        if change is not None:
            self._state = change.new_state
        tags = [tag for at, tag in self._breaks if at == event]
        if tags:
            self._breaks = [one for one in self._breaks if one[0] != event]
            await self._stop(tags)

    def _activate(self, event: str) -> None:
        states = (0, self._state)
        rules = [one for one in self._inject if one.event == event and one.state in states]
        self._active = rules or self._active

    async def _stop(self, tags: list[str]) -> None:
        loop = asyncio.get_running_loop()
        stops = [(tag, loop.create_future()) for tag in tags]
        for stop in stops:
            self._suspended.insert(0, stop)
            print(f"blkdebug: Suspended request '{stop[0]}'")
        self._changed.set()
        try:
            for _, waiter in stops:
                await waiter
        finally:
            self._suspended = [one for one in self._suspended if one not in stops]

    async def check(self, iotype: str, offset: int, length: int) -> None:
        """Raise the error that an active rule has for a request.

        Raises:
            StorageError: it fails.
        """
        rule = next((one for one in self._active if one.matches(iotype, offset, length)), None)
        if rule is None or not rule.errno:
            return
        if rule.once:
            self._active = [one for one in self._active if one is not rule]
            self._inject = [one for one in self._inject if one is not rule]
        if not rule.immediately:
            await asyncio.sleep(0)
        raise qedasync.StorageError(rule.errno, offset=offset, length=length)
