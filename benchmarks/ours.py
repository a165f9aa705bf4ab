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
from collections.abc import Coroutine
from typing import Any

import uvloop

import qedasync
from benchmarks.workload import Workload

__all__ = ["run"]


async def run(image: str, work: Workload) -> float:
    """Seconds for the whole stream, ``work.depth`` tasks at once."""
    mode = "r+" if work.write else "r"
    async with qedasync.open(image, mode, cache=work.cache) as disk:  # type: ignore[arg-type]
        numbers = iter(range(work.count))
        worker = _write if work.write else _read
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(work.depth):
                tasks.create_task(worker(disk, work, numbers))
        return time.perf_counter() - begin


async def _read(disk: qedasync.Image, work: Workload, numbers: Any) -> None:
    block, step, size, start = work.block, work.step, work.size, work.start
    for i in numbers:
        await disk.pread(block, (start + i * step) % size)


async def _write(disk: qedasync.Image, work: Workload, numbers: Any) -> None:
    block, step, size, start = work.block, work.step, work.size, work.start
    data = bytes(block)
    for i in numbers:
        await disk.pwrite(data, (start + i * step) % size)


def run_on(loop: str, job: Coroutine[Any, Any, float]) -> float:
    return uvloop.run(job) if loop == "uvloop" else asyncio.run(job)


if __name__ == "__main__":
    path, wish = sys.argv[1:3]
    chosen = sys.argv[3] if len(sys.argv) > 3 else "uvloop"
    seconds = run_on(chosen, run(path, Workload(**json.loads(wish))))
    print(json.dumps({"seconds": seconds}))
