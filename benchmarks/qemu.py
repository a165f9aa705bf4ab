"""The rival: qemu-img, as a process of its own."""

from __future__ import annotations

import re
import subprocess

from benchmarks.workload import Workload

__all__ = ["AIO_MODES", "FILL_BYTES", "bench", "create", "fill"]

AIO_MODES = ("threads", "io_uring")
"""qemu-img's ``-i`` modes for a buffered file; ``native`` needs O_DIRECT."""

FILL_BYTES = 64 << 10
"""Bytes of a write that prepares an image."""

_TIME = re.compile(r"Run completed in ([0-9.]+) seconds")


def bench(image: str, work: Workload, aio: str) -> float | None:
    """Seconds for the stream, as qemu-img reports them; None if it fails in this mode."""
    done = subprocess.run(work.qemu_command(image, aio), capture_output=True, text=True)
    match = _TIME.search(done.stdout)
    if done.returncode or match is None:
        return None
    return float(match[1])


def create(image: str, size: int, *, cluster_size: int = 65536, table_size: int = 4) -> None:
    """An empty image."""
    options = f"cluster_size={cluster_size},table_size={table_size}"
    command = ["qemu-img", "create", "-q", "-f", "qed", "-o", options, image, str(size)]
    subprocess.run(command, check=True, capture_output=True)


def fill(image: str, ranges: list[tuple[int, int]], pattern: int = 0x5A) -> None:
    """Write a byte over guest ranges (offset, length), so that they are allocated.

    64 KiB at a time, as guests do. One huge write would leave huge folios in the page cache, in
    which the kernel (6.x, ext4) takes several times as long for each small write, whoever makes it.
    """
    script = "".join(
        f"write -q -P {pattern} {offset + done} {min(length - done, FILL_BYTES)}\n"
        for offset, length in ranges
        for done in range(0, length, FILL_BYTES)
    )
    command = ["qemu-io", "-f", "qed", "-t", "unsafe", image]
    subprocess.run(command, input=script, check=True, capture_output=True, text=True)
