"""Progress on stderr: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

__all__ = ["progress_line"]

_EVERY = 2.0  # seconds between plain lines


@contextmanager
def progress_line() -> Iterator[Callable[[float, str], None]]:
    """Gives a function to be called with the share that is done, 0 to 1, and a text."""
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
