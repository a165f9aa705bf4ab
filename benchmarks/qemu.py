"""The rival: QEMU's tools, each run a process of its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable

from benchmarks import process
from benchmarks.workload import Workload

__all__ = [
    "FILL_BYTES",
    "bench",
    "bench_command",
    "bench_seconds",
    "create",
    "fill",
    "io_command",
    "io_script",
]

FILL_BYTES = 64 << 10
"""Bytes of a write that prepares an image."""

_TIME = re.compile(r"Run completed in ([0-9.]+) seconds")


def bench(image: str, work: Workload, aio: str, format: str = "qed") -> float | None:
    """Seconds for the stream, as ``qemu-img bench`` reports them; None if it fails in this mode."""
    try:
        return bench_seconds(process.run(bench_command(image, work, aio, format)).stdout)
    except process.Failed:
        return None


def bench_command(image: str, work: Workload, aio: str, format: str = "qed") -> list[str]:
    """The stream as ``qemu-img bench`` has it."""
    command = ["qemu-img", "bench", "-f", format, "-t", work.cache, "-i", aio]
    command += ["-c", str(work.count), "-d", str(work.depth), "-s", str(work.block)]
    command += ["-S", str(work.step), "-o", str(work.start)]
    if work.flush_every:
        command.append(f"--flush-interval={work.flush_every}")
    return [*command, *(["-w"] if work.write else []), image]


def bench_seconds(stdout: str) -> float:
    """What ``qemu-img bench`` says that the requests took."""
    match = _TIME.search(stdout)
    if match is None:
        raise process.Failed(f"qemu-img bench said {stdout!r}")
    return float(match[1])


def io_command(image: str, work: Workload, aio: str) -> list[str]:
    """``qemu-io``, for what ``qemu-img bench`` cannot do; its input is :func:`io_script`."""
    return ["qemu-io", "-f", "qed", "-t", work.cache, "-i", aio, image]


def io_script(work: Workload) -> str:
    """The stream as commands that do not wait for each other, then one that waits for all."""
    commands = (_io_line(work, number, pos) for number, pos in enumerate(work.positions()))
    return "".join([*commands, "aio_flush\n"])


def _io_line(work: Workload, number: int, pos: int) -> str:
    if work.zero:
        return f"aio_write -q -z {pos} {work.block}\n"
    return f"aio_{'read' if work.reads(number) else 'write'} -q {pos} {work.block}\n"


def create(
    image: str,
    size: int,
    *,
    backing: str = "",
    cluster_size: int = 65536,
    table_size: int = 4,
) -> None:
    """An empty image."""
    options = f"cluster_size={cluster_size},table_size={table_size}"
    command = ["qemu-img", "create", "-q", "-f", "qed", "-o", options]
    command += ["-b", backing, "-F", "qed"] if backing else []
    subprocess.run([*command, image, str(size)], check=True, capture_output=True)


def fill(
    image: str, ranges: Iterable[tuple[int, int]], pattern: int = 0x5A, format: str = "qed"
) -> None:
    """Write a byte over guest ranges (offset, length), so that they are allocated.

    64 KiB at a time, as guests do. One huge write would leave huge folios in the page cache, in
    which the kernel (6.x, ext4) takes several times as long for each small write, whoever makes it.
    """
    script = "".join(
        f"write -q -P {pattern} {offset + done} {min(length - done, FILL_BYTES)}\n"
        for offset, length in ranges
        for done in range(0, length, FILL_BYTES)
    )
    process.run(["qemu-io", "-f", format, "-t", "unsafe", image], script)
