"""The machine: what it is, and how quiet it was meanwhile.

A pulse is a fixed piece of work in this process. Between cases its rate should be the same; how
much it is not is how far any single figure of the run may be off.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

__all__ = ["Noise", "about"]

_CALLS = 20_000
_BLOCK = 4096
_HZ = os.sysconf("SC_CLK_TCK")


class Noise:
    """Takes the machine's pulse, and adds up what others did on it."""

    def __init__(self) -> None:
        self._rates: list[float] = []
        self._begin = time.perf_counter()
        self._busy, self._stolen = _ticks()
        self._own = _own_seconds()

    def pulse(self) -> None:
        """Read the same page again and again, for some 30 ms."""
        with TemporaryFile() as file:
            file.write(bytes(_BLOCK))
            file.flush()
            begin = time.perf_counter()
            for _ in range(_CALLS):
                os.preadv(file.fileno(), (bytearray(_BLOCK),), 0)
            self._rates.append(_CALLS / (time.perf_counter() - begin))

    def summary(self) -> dict[str, str]:
        """For people."""
        seconds = time.perf_counter() - self._begin
        busy, stolen = _ticks()
        busy_seconds, stolen_seconds = (busy - self._busy) / _HZ, (stolen - self._stolen) / _HZ
        whole = seconds * (os.cpu_count() or 1)
        others = max(0.0, busy_seconds - (_own_seconds() - self._own))
        found = {
            "duration": f"{seconds / 60:.1f} minutes",
            "processor time of other programs": f"{others / whole:.1%} of what the machine has",
            "processor time stolen by the host": f"{stolen_seconds / whole:.1%}",
        }
        if len(self._rates) > 1:
            middle, low, high = statistics.median(self._rates), min(self._rates), max(self._rates)
            found["pulse (page reads in a loop, between cases)"] = (
                f"{middle / 1e3:.0f} K/s, from {low / middle - 1:+.0%} to {high / middle - 1:+.0%}"
            )
        return found


def _ticks() -> tuple[int, int]:
    """Clock ticks of all processors: busy for anyone here, and taken by the host."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return 0, 0
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    return user + nice + system + irq + softirq, steal


def _own_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


# ------------------------------------------------------------------------- facts


def about(directory: Path) -> dict[str, str]:
    """What ran, on what; what cannot be found out is left out."""
    facts: dict[str, Callable[[], str]] = {
        "date": lambda: time.strftime("%Y-%m-%d %H:%M %z"),
        "commit": lambda: _first_line(["git", "-C", str(Path(__file__).parent), "describe",
                                       "--always", "--dirty"]),
        "processor": _processor,
        "memory": lambda: f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB",
        "kernel": lambda: f"{platform.system()} {platform.release()}",
        "file system": lambda: _first_line(["stat", "-f", "-c", "%T", str(directory)]),
        "python": lambda: f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": lambda: version("uvloop"),
        "aiofiles": lambda: version("aiofiles"),
        "aiofile": lambda: version("aiofile"),
        "qemu-img": lambda: _first_line(["qemu-img", "--version"]).split()[2],
        "fio": lambda: _first_line(["fio", "--version"]).removeprefix("fio-"),
    }  # fmt: skip
    found = {}
    for name, find in facts.items():
        try:
            found[name] = find()
        except (OSError, ValueError, PackageNotFoundError, subprocess.CalledProcessError):
            continue
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {models[0] if models else platform.machine()}"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0].strip()
