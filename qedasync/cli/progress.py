"""How far a long job is: as qemu-img shows it, as a bar, or as lines for a program to read."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal, TypeAlias

from qedasync.cli.options import Option, Parsed, ToolError

__all__ = [
    "PROGRESS_OPTIONS",
    "Mode",
    "progress",
    "progress_line",
    "progress_mode",
]

Mode: TypeAlias = Literal["off", "bar", "json"]
Report: TypeAlias = Callable[[int, int], None]

PROGRESS_OPTIONS = (
    Option("p", "", "", "show progress; on SIGUSR1 one line comes without it too"),
    Option("", "progress", "FORM", "how progress is shown", ("bar", "json", "off")),
)
"""The options of a verb that :func:`progress_mode` understands."""

_STEP = 1.0  # percent between two reports, as qemu-img has it
_BAR_WIDTH = 40
_EVERY = 2.0  # seconds between plain lines


def progress_mode(parsed: Parsed) -> Mode:
    """What the options ask for; ``-q`` silences it.

    Raises:
        ToolError: there is no such form.
    """
    modes: dict[str | None, Mode] = {"off": "off", "bar": "bar", "json": "json"}
    mode = parsed.last("progress", "bar" if parsed.has("p") else "off")
    if mode not in modes:
        raise ToolError(f"--progress is '{mode}'; it must be bar, json or off")
    return "off" if parsed.has("q") else modes[mode]


@contextmanager
def progress(mode: Mode, what: str) -> Iterator[Report]:
    """Gives a function to be called with what is done and the total, in any unit.

    Args:
        mode: ``"bar"`` is qemu-img's line where stdout is no terminal; ``"off"`` shows nothing.
        what: the job's name, for JSON.

    SIGUSR1 prints one line on stderr, whatever the mode.
    """
    state = _State(what)
    if mode == "bar":
        state.show = _draw_bar if sys.stdout.isatty() else _qemu_line
    elif mode == "json":
        state.show = _json_line
    with _on_sigusr1(state):
        state.report(0, 1)
        try:
            yield state.report
        finally:
            if mode == "bar":
                print(flush=True)


class _State:
    """How far the job is, and what was shown last.

    Attributes:
        percent, done, total: as reported last.
        show: puts the state somewhere.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.percent = 0.0
        self.done = self.total = 0
        self.show: Callable[[_State], None] = lambda state: None
        self._shown = -1.0

    def report(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        percent = self.percent = min(100.0, 100.0 * done / total) if total > 0 else 100.0
        step = abs(percent - self._shown)
        if step > _STEP or (step and percent in (0.0, 100.0)):
            self._shown = percent
            self.show(self)


def _qemu_line(state: _State) -> None:
    print(f"    ({state.percent:3.2f}/100%)", end="\r", flush=True)


def _draw_bar(state: _State) -> None:
    filled = int(state.percent * _BAR_WIDTH / 100)
    print(f"\r{'━' * filled:<{_BAR_WIDTH}} {state.percent:6.2f} %", end="", flush=True)


def _json_line(state: _State) -> None:
    import json

    line = {
        "job": state.what,
        "done": state.done,
        "total": state.total,
        "percent": round(state.percent, 2),
    }
    print(json.dumps(line), flush=True)


@contextmanager
def _on_sigusr1(state: _State) -> Iterator[None]:
    def tell(number: int, frame: Any) -> None:
        print(f"    ({state.percent:3.2f}/100%)", file=sys.stderr, flush=True)

    try:
        before = signal.signal(signal.SIGUSR1, tell)
    except (AttributeError, ValueError):  # Windows; not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def progress_line() -> Iterator[Callable[[float, str], None]]:
    """On stderr; gives a function to be called with the share that is done, 0 to 1, and a text."""
    if sys.stderr.isatty():
        with _live_line() as show:
            yield show
    else:
        yield _plain_lines()


@contextmanager
def _live_line() -> Iterator[Callable[[float, str], None]]:
    # Late: rich takes a tenth of a second, and only a terminal needs it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.description}"))
    # No thread of rich's own: the line is drawn when there is something new.
    with Progress(
        *columns, console=Console(stderr=True), auto_refresh=False, transient=True
    ) as shown:
        task = shown.add_task("", total=1.0)

        def show(done: float, text: str) -> None:
            shown.update(task, completed=done, description=text, refresh=True)

        yield show


def _plain_lines() -> Callable[[float, str], None]:
    last = monotonic()

    def show(done: float, text: str) -> None:
        nonlocal last
        if monotonic() - last >= _EVERY:
            last = monotonic()
            print(f"{done:4.0%}  {text}", file=sys.stderr, flush=True)

    return show
