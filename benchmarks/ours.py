"""One run of a workload by qedasync, in a process of its own.

``python -m benchmarks.ours IMAGE JSON`` prints the seconds that the requests took, as JSON; opening
and closing are left out, as ``qemu-img bench`` does. Optional last argument: ``asyncio`` or
``uvloop`` (the default).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import uvloop

import qedasync
from benchmarks.workload import Workload

__all__ = ["run"]


async def run(image: str, work: Workload) -> float:
    """Seconds for the whole stream, ``work.depth`` tasks at once."""
    mode = "r+" if work.write else "r"
    async with qedasync.open(image, mode, cache=work.cache) as disk:  # type: ignore[arg-type]
        positions = iter(work.positions())
        worker = _write if work.write else _read
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(work.depth):
                tasks.create_task(worker(disk, work.block, positions))
        return time.perf_counter() - begin


async def _read(disk: qedasync.Image, block: int, positions: Iterator[int]) -> None:
    for pos in positions:
        await disk.pread(block, pos)


async def _write(disk: qedasync.Image, block: int, positions: Iterator[int]) -> None:
    data = bytes(block)
    for pos in positions:
        await disk.pwrite(data, pos)


def run_on(loop: str, job: Coroutine[Any, Any, float]) -> float:
    return uvloop.run(job) if loop == "uvloop" else asyncio.run(job)


if __name__ == "__main__":
    path, wish = sys.argv[1:3]
    chosen = sys.argv[3] if len(sys.argv) > 3 else "uvloop"
    seconds = run_on(chosen, run(path, Workload(**json.loads(wish))))
    print(json.dumps({"seconds": seconds}))
