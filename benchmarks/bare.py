"""The limits: the same stream as bare system calls or copies in a loop, without an image.

``python -m benchmarks.bare WAY FILE JSON`` prints what it took, as JSON. The file is raw; positions
are those of the stream.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.workload import Workload

__all__ = ["WAYS", "run"]

Move = Callable[[list[int]], None]
"""Makes the requests at these positions."""

_DIRECT = getattr(os, "O_DIRECT", 0)


def run(way: str, path: str, work: Workload) -> dict[str, float]:
    """Seconds, and processor seconds, for the stream, one request after the other.

    With ``cache="writethrough"``, an ``os.fdatasync`` after every ``work.depth`` writes.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (_DIRECT if work.direct else 0), 0o644)
    try:
        os.ftruncate(fd, max(work.size, os.fstat(fd).st_size))
        positions = work.positions()
        move = WAYS[way](fd, work)
        begin, used = time.perf_counter(), time.process_time()
        move(positions)
        return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - used}
    finally:
        os.close(fd)


def _calls(fd: int, work: Workload) -> Move:
    if work.direct:
        return partial(_direct, fd, work, mmap.mmap(-1, work.block))
    return partial(_change if work.write else _read, fd, work)


def _read(fd: int, work: Workload, positions: list[int]) -> None:
    block = work.block
    for pos in positions:
        os.preadv(fd, (bytearray(block),), pos)


def _change(fd: int, work: Workload, positions: list[int]) -> None:
    data = bytes(work.block)
    interval = work.flush_every or (work.depth if work.cache == "writethrough" else 0)
    for i, pos in enumerate(positions):
        if work.reads(i):
            os.preadv(fd, (bytearray(work.block),), pos)
        else:
            os.pwrite(fd, data, pos)
        if interval and i % interval == interval - 1:
            os.fdatasync(fd)


def _direct(fd: int, work: Workload, page: mmap.mmap, positions: list[int]) -> None:
    """O_DIRECT wants memory that begins at a page's boundary, so there is one buffer."""
    move = os.pwritev if work.write else os.preadv
    for pos in positions:
        move(fd, (page,), pos)


def _copies(fd: int, work: Workload) -> Move:
    """As if the file were in memory: one copy a request."""
    return partial(_copy, memoryview(bytearray(b"Z") * work.size), work.block)


def _copy(source: memoryview, block: int, positions: list[int]) -> None:
    for pos in positions:
        bytearray(source[pos : pos + block])


WAYS = {"calls": _calls, "copies": _copies}

if __name__ == "__main__":
    way, path, wish = sys.argv[1:]
    print(json.dumps(run(way, path, Workload(**json.loads(wish)))))
