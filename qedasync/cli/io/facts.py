"""Commands that tell about the image: info, length, map, alloc."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from qedasync.cli.io.failure import failing
from qedasync.cli.io.numbers import size
from qedasync.cli.io.report import size_text

if TYPE_CHECKING:
    from qedasync import Extent
    from qedasync.cli.io.session import Session

__all__ = ["do_alloc", "do_info", "do_length", "do_map"]

_SECTOR = 512
_STEP = 1 << 36  # bytes of a disk whose runs are asked for at a time


async def do_info(session: Session, words: Sequence[str]) -> None:
    """What kind of image it is."""
    cluster_size = session.disk.cluster_size if session.node.format == "qed" else 0
    print(f"format name: {session.node.format}")
    print(f"cluster size: {size_text(cluster_size)}")
    print("vm state offset: 0 bytes")


async def do_length(session: Session, words: Sequence[str]) -> None:
    """How long it is."""
    print(size_text(session.disk.size))


async def do_map(session: Session, words: Sequence[str]) -> None:
    """Which parts are in the image itself."""
    with failing("Failed to get allocation status"):
        start, length, last = 0, 0, False
        async for held, run in _holdings(session, 0, session.disk.size):
            if held is not last and length:
                _show_run(start, length, last)
                start, length = start + length, 0
            last, length = held, length + run
        if length:
            _show_run(start, length, last)


def _show_run(start: int, length: int, held: bool) -> None:
    sys.stdout.write(
        f"{size_text(length)} ({length:#x}) bytes {'   ' if held else 'not'} allocated"
        f" at offset {size_text(start)} ({start:#x})\n"
    )


async def do_alloc(session: Session, words: Sequence[str]) -> None:
    """How many bytes of a part are in the image itself."""
    offset = size(words[1])
    length = size(words[2]) if len(words) > 2 else _SECTOR
    length = max(0, min(length, session.disk.size - offset))
    with failing("is_allocated failed"):
        held = sum([run async for held, run in _holdings(session, offset, length) if held])
    print(f"{held}/{length} bytes allocated at offset {size_text(offset)}")


async def _holdings(session: Session, offset: int, length: int) -> AsyncIterator[tuple[bool, int]]:
    """Runs of a part: whether the image itself has it, and its bytes."""
    holder = session.node.holder
    if holder is None:
        yield True, length  # a raw file has all of it, holes too
        return
    offset += holder.start
    end = offset + length
    while offset < end:
        runs = await holder.disk.block_status(offset, min(_STEP, end - offset))
        for held, run in _held(runs):
            yield held, run
        offset = runs[-1].end


def _held(runs: Sequence[Extent]) -> Iterator[tuple[bool, int]]:
    for run in runs:
        yield run.kind in ("data", "zero"), run.length
