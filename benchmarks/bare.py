"""The limit: the same stream as bare system calls in a loop, without an image.

``python -m benchmarks.bare FILE JSON`` prints the seconds. The file is raw; positions are those of
the stream.
"""

from __future__ import annotations

import json
import os
import sys
import time

from benchmarks.workload import Workload

__all__ = ["run"]


def run(path: str, work: Workload) -> float:
    """Seconds for the stream by ``os.preadv`` or ``os.pwrite``, one call after the other.

    With ``cache="writethrough"``, an ``os.fdatasync`` after every ``work.depth`` writes.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(fd, max(work.size, os.fstat(fd).st_size))
        positions = work.positions()
        begin = time.perf_counter()
        if work.write:
            _write(fd, work, positions)
        else:
            block = work.block
            for pos in positions:
                os.preadv(fd, (bytearray(block),), pos)
        return time.perf_counter() - begin
    finally:
        os.close(fd)


def _write(fd: int, work: Workload, positions: list[int]) -> None:
    data = bytes(work.block)
    sync = work.cache == "writethrough"
    for i, pos in enumerate(positions):
        os.pwrite(fd, data, pos)
        if sync and i % work.depth == work.depth - 1:
            os.fdatasync(fd)


if __name__ == "__main__":
    print(json.dumps({"seconds": run(sys.argv[1], Workload(**json.loads(sys.argv[2])))}))
