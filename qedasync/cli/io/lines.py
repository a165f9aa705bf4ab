"""Where commands come from: a terminal, a pipe or a file, or memory; none of them blocks the loop.

A thread that waits for the user cannot be called back. It is a daemon, and reads the descriptor
itself, so that the program may end while it waits.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

__all__ = ["PROMPT", "Lines", "open_lines"]

T = TypeVar("T")

PROMPT = "qemu-io> "
_PIECE = 1 << 16
_HISTORY = 1000


class Lines(Protocol):
    """A source of lines."""

    async def next(self) -> str | None:
        """Show the prompt; the next line without its end, or None if there is none."""
        ...

    def close(self) -> None:
        """Leave everything as it was."""
        ...


def open_lines(words: Callable[[], list[str]]) -> Lines:
    """The lines of stdin.

    Args:
        words: what completion offers.
    """
    try:
        number = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # io.UnsupportedOperation is both of the latter
        return _Pipe(lambda: sys.stdin.buffer.read(_PIECE), wait=False)
    if os.isatty(number) and sys.stdout.isatty():
        return _Terminal(number, words)
    return _Pipe(lambda: os.read(number, _PIECE), wait=True)


class _Pipe:
    """Lines out of bytes."""

    def __init__(self, read: Callable[[], bytes], *, wait: bool) -> None:
        self._read = read
        self._wait = wait
        self._buffer = io.BytesIO()
        self._rest = b""
        self._lines: list[bytes] = []
        self._ended = False

    async def next(self) -> str | None:
        sys.stdout.write(PROMPT)
        sys.stdout.flush()
        while not self._lines and not self._ended:
            self._take(await _in_thread(self._read) if self._wait else self._read())
        await asyncio.sleep(0)  # requests in flight go on between two lines
        if not self._lines:
            return None
        # As in C, a zero byte ends the text.
        return self._lines.pop().partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def _take(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if not piece:
            self._ended = True
            lines = [self._rest] if self._rest else []
        self._lines = lines[::-1]

    def close(self) -> None:
        pass


class _Terminal:
    """Lines that a user types, with editing, completion and a history."""

    def __init__(self, number: int, words: Callable[[], list[str]]) -> None:
        import readline
        import termios

        self._number = number
        self._settings = termios.tcgetattr(number)
        self._words = words
        self._history = os.environ.get("QEDASYNC_HISTORY")
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")
        if self._history:
            with suppress(OSError):
                readline.read_history_file(self._history)

    async def next(self) -> str | None:
        sys.stdout.flush()
        try:
            return await _in_thread(lambda: input(PROMPT))
        except EOFError:
            print()
            return None
        except asyncio.CancelledError:
            print()  # what comes next does not stand behind what was typed
            raise

    def _complete(self, text: str, state: int) -> str | None:
        import readline

        if readline.get_begidx():
            return None
        found = [word for word in self._words() if word.startswith(text)]
        return f"{found[state]} " if state < len(found) else None

    def close(self) -> None:
        import readline
        import termios

        if self._history:
            readline.set_history_length(_HISTORY)
            with suppress(OSError):
                readline.write_history_file(self._history)
        termios.tcsetattr(self._number, termios.TCSADRAIN, self._settings)


async def _in_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns, in a thread that nobody waits for at the program's end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def deliver(method: Callable[[Any], None], value: Any) -> None:
        if not answer.done():
            method(value)

    def run() -> None:
        try:
            call: tuple[Any, ...] = (answer.set_result, work())
        except BaseException as error:
            call = (answer.set_exception, error)
        with suppress(RuntimeError):  # the loop has ended before the user said anything
            loop.call_soon_threadsafe(deliver, *call)

    threading.Thread(target=run, name="qedasync-input", daemon=True).start()
    return await answer
