"""``qedasync map``: where the bytes of an image lie."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qedasync.cli.common import (
    BACKING,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    one_name,
    open_named,
    refuse_object,
    wants_json,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse
from qedasync.cli.sizes import MAX_SIZE, size_word
from qedasync.errors import QEDError

if TYPE_CHECKING:
    from qedasync import Disk, Extent

__all__ = ["VERB", "main"]

VERB = Verb(
    name="map",
    summary="show where the bytes of an image lie",
    names="FILENAME",
    options=(
        FORMAT,
        Option("s", "start-offset", "OFFSET", "begin there"),
        Option("l", "max-length", "LENGTH", "go on for so many bytes"),
        OUTPUT,
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Lists the runs of data with their place in the file that has them, which may be a backing file.
    As JSON it lists what reads as zeroes, too; "depth" is 0 for the image itself, 1 for its backing
    file and so on; "present" says whether a file has the run.
    """,
    examples=(
        Example("qedasync map disk.qed", "Where the data are"),
        Example("qedasync map --output=json -s 1M -l 64k disk.qed", "All about one part"),
    ),
)

_FIRST_STEP = 64 << 20  # bytes of the image to ask about at first
_FEW, _MANY = 4096, 65536  # runs in an answer: ask about more, or about less, next time
_SMALLEST_STEP = 512


def main(words: Sequence[str]) -> int:
    """Run ``qedasync map``; answers the exit code."""
    from qedasync.cli.run import run_early

    parsed = parse(VERB, words)
    refuse_object(parsed)
    start = size_word("start offset", parsed.last("s", "0") or "")
    length = size_word("max length", parsed.last("l", str(MAX_SIZE)) or "")
    name, in_json = one_name(parsed), wants_json(parsed)
    run_early(
        lambda at_once: _map(parsed, name, in_json, range(start, start + length), at_once=at_once)
    )
    return 0


async def _map(parsed: Parsed, name: str, in_json: bool, part: range, *, at_once: bool) -> None:
    """Print what is in a part of the disk."""
    node = await open_named(parsed, name, at_once=at_once)
    printer = (_JsonPrinter if in_json else _Printer)()
    gc.disable()  # a million extents make no cycles; to look for them takes a sixth of the time
    try:
        async for runs in _runs(node.disk, part.start, min(part.stop, node.disk.size)):
            printer.add(runs)
    except ToolError:
        raise
    except QEDError as error:
        number = getattr(error, "errno", None) or errno.EIO
        raise ToolError(f"Could not read file metadata: {os.strerror(number)}") from error
    finally:
        gc.enable()
        await node.close()
    printer.finish(part.start)


async def _runs(disk: Disk, pos: int, end: int) -> AsyncIterator[list[Extent]]:
    """All runs of a part of a disk, thousands at a time; neighbours in one list are joined.

    What cannot be looked up is asked for in ever smaller pieces, so that all before it is told.
    """
    step = _FIRST_STEP
    while pos < end:
        try:
            runs = await disk.block_status(pos, min(step, end - pos))
        except QEDError:
            if step <= _SMALLEST_STEP:
                raise
            step = max(step >> 3, _SMALLEST_STEP)
            continue
        pos = runs[-1].end
        if len(runs) < _FEW:
            step <<= 1
        elif len(runs) > _MANY:
            step >>= 1
        yield runs


_ROW = "%-#16x%-#16x%-#16x%s\n"


class _Printer:
    """Prints runs as a table, joined where they go on, data only."""

    def __init__(self) -> None:
        self._last: Extent | None = None
        sys.stdout.write(self.head())

    def add(self, runs: list[Extent]) -> None:
        """Print all but the last, which may go on."""
        last, first = self._last, runs[0]
        if last is not None:
            if first.continues(last):
                whole = last.length + first.length
                runs[0] = replace(first, start=last.start, length=whole, offset=last.offset)
            else:
                runs.insert(0, last)
        self._last = runs.pop()
        sys.stdout.write(self.text(runs))

    def finish(self, start: int) -> None:
        """Print the last one."""
        if self._last is not None:
            sys.stdout.write(self.text([self._last]))

    def head(self) -> str:
        """What comes first."""
        return f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n"

    def text(self, runs: list[Extent]) -> str:
        """The lines of some runs."""
        shown = [run for run in runs if not run.zero]
        if None in [run.offset for run in shown]:
            raise ToolError("File contains external, encrypted or compressed clusters.")
        lines = [_ROW % (run.start, run.length, run.offset, run.path) for run in shown]
        # Only what lies at the very beginning begins at 0, which C writes without "0x".
        if runs and runs[0].start == 0 and not runs[0].zero:
            lines[0] = lines[0].replace("0x0 ", "0   ", 2 if runs[0].offset == 0 else 1)
        return "".join(lines)


class _JsonPrinter(_Printer):
    """Prints every run as JSON, a line each."""

    def head(self) -> str:
        return "["

    def finish(self, start: int) -> None:
        if self._last is None:
            sys.stdout.write(
                f'{{ "start": {start}, "length": 0, "depth": 0, "present": false, "zero": false,'
                ' "data": false}]\n'
            )
        else:
            sys.stdout.write(self.text([self._last]).removesuffix(",\n") + "]\n")

    def text(self, runs: list[Extent]) -> str:
        return "".join(
            [
                _DATA % (run.start, run.length, run.depth, run.offset)
                if not run.zero and run.offset is not None
                else _json_line(run)
                for run in runs
            ]
        )


_DATA = (
    '{ "start": %d, "length": %d, "depth": %d, "present": true, "zero": false, "data": true,'
    ' "offset": %d},\n'
)


def _json_line(run: Extent) -> str:
    present = "false" if run.kind == "unallocated" else "true"
    zero, data = ("true", "false") if run.zero else ("false", "true")
    place = "" if run.offset is None else f', "offset": {run.offset}'
    return (
        f'{{ "start": {run.start}, "length": {run.length}, "depth": {run.depth},'
        f' "present": {present}, "zero": {zero}, "data": {data}{place}}},\n'
    )
