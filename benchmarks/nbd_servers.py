"""The servers of the NBD cases: how each is started, and what it takes of the processor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["DEFAULT", "MODES", "NBDKIT", "RunError", "processor_seconds", "served"]

MODES: dict[str, tuple[str, ...]] = {
    "threads": (),
    "io_uring": ("--aio=io_uring",),
    "native": ("--aio=native", "--cache=none"),
}
"""qemu-nbd's options in each of its modes; the first one is what it does unless told."""

DEFAULT = "threads"
NBDKIT = "nbdkit"
"""Serves a raw file: it has no QED to decode."""

_TICKS = os.sysconf("SC_CLK_TCK")


class RunError(Exception):
    """The client or the server did not get through a run."""


@contextmanager
def served(
    server: str, image: Path, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server for one run; ``image`` is a raw file for nbdkit, for the others a QED image."""
    sock = folder / "nbd.sock"
    sock.unlink(missing_ok=True)
    command = [*_command(server, str(sock)), str(image)]
    quiet = subprocess.DEVNULL  # qemu-nbd says that probes and clients have left
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        _wait_for(sock, process)
        yield process, sock
    finally:
        process.terminate()
        process.wait()


def _command(server: str, sock: str) -> list[str]:
    """What starts it, but for the image's name."""
    if server == "ours":
        return [sys.executable, "-m", "qedasync", "serve", "-f", "qed", "-t", "-k", sock]
    if server == NBDKIT:
        return ["nbdkit", "--foreground", "--unix", sock, "file"]
    return ["qemu-nbd", "-f", "qed", "-t", "-e", "0", "-k", sock, *MODES[server]]


def _wait_for(sock: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(os.fspath(sock))
            return
        time.sleep(0.01)
    raise RunError


def processor_seconds(pid: int) -> float:
    """Seconds of processor that a process has taken, its threads' included."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS
