"""What every verb runs on: the loop, signals, exit codes, and the program's name."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "EXIT_FAILED",
    "EXIT_OK",
    "Interrupted",
    "link_name",
    "program_name",
    "run_async",
    "run_at_once",
    "run_early",
    "say",
]

T = TypeVar("T")

EXIT_OK = 0
EXIT_FAILED = 1

_LINKS = ("qemu-img", "qemu-io", "qemu-nbd")


class Interrupted(KeyboardInterrupt):
    """A signal ended the work, and everything has been tidied up.

    Attributes:
        code: the exit code, 128 and the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def link_name() -> str | None:
    """The tool that the program was called as, through a link of that name; else None."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name if name in _LINKS else None


def program_name() -> str:
    """What messages begin with."""
    return link_name() or "qedasync"


def say(text: str) -> None:
    """One line on stderr, after the program's name."""
    print(f"{program_name()}: {_one_line(text)}", file=sys.stderr)


def _one_line(text: str) -> str:
    """Names may hold line ends and what moves a terminal's cursor; a message does not."""
    return text if text.isprintable() else "".join(map(_shown, text.strip()))


def _shown(char: str) -> str:
    # What is no UTF-8 came in as lone surrogates and goes out as the same bytes.
    if char.isprintable() or "\udc80" <= char <= "\udcff":
        return char
    return " " if char == "\n" else char.encode("unicode_escape").decode()


def run_async(main: Coroutine[Any, Any, T], loop_factory: Any = None, *, brief: bool = False) -> T:
    """Run a coroutine to its end, on the fastest loop there is unless one is given.

    SIGINT or SIGTERM cancels it, once, with the signal's number as the message; a second one is an
    ordinary one.

    Args:
        brief: the fastest loop would take longer to load than it saves: there is little to do, or
            threads do it, as a copy from file to file.

    Raises:
        Interrupted: a signal came, and the coroutine ended because of it.
    """
    import asyncio

    factory = loop_factory or (asyncio.new_event_loop if brief else _loop_factory())
    with asyncio.Runner(loop_factory=factory) as runner:
        received: list[int] = []
        try:
            return runner.run(_watched(main, received))
        except asyncio.CancelledError:
            if not received:
                raise
        raise Interrupted(received[0])


def run_at_once(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing, without an event loop: asyncio takes longer to load
    than all that such a verb does. It may give turns (:mod:`qedasync.turns`).

    SIGINT and SIGTERM end it wherever it is.

    Raises:
        Interrupted: SIGTERM came.
    """
    with _terminable():
        try:
            while main.send(None) is None:
                pass
        except StopIteration as end:
            result: T = end.value
            return result
    main.close()
    raise RuntimeError("a coroutine waits that was not to")


def run_early(start: Callable[[bool], Coroutine[Any, Any, T]]) -> T:
    """Run a verb without an event loop if it can be, and else with one.

    Args:
        start: makes its coroutine; told whether no loop runs. Before that coroutine raises
            :class:`~qedasync.cli.nodes.LoopNeeded` it has neither written nor printed anything.

    Raises:
        Interrupted: a signal came.
    """
    from qedasync.cli.nodes import LoopNeeded

    try:
        return run_at_once(start(True))
    except LoopNeeded:
        return run_async(start(False), brief=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises, as SIGINT does anyway."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted(number)

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _watched(main: Coroutine[Any, Any, T], received: list[int]) -> T:
    import asyncio

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        received.append(number)
        _ignore(loop)
        task.cancel(number)

    _listen(loop, stop)
    try:
        return await main
    finally:
        _ignore(loop)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _listen(loop: asyncio.AbstractEventLoop, stop: Any) -> None:
    for number in _SIGNALS:
        try:
            loop.add_signal_handler(number, stop, number)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
            return


def _ignore(loop: asyncio.AbstractEventLoop) -> None:
    for number in _SIGNALS:
        try:
            loop.remove_signal_handler(number)
        except (NotImplementedError, RuntimeError, ValueError):
            return
