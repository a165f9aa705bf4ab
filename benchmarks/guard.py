"""A guard against slow-downs that works on a noisy machine: it counts instructions, not time.

``python -m benchmarks guard`` runs the hot paths under valgrind's cachegrind, each with two lengths
of stream, so that the start of the process falls out of the difference. What is kept is a path's
instructions per request over those of one turn of a plain coroutine (:mod:`benchmarks.yardstick`):
interpreters are built in many ways, and most of what sets them apart is in both. Instructions
inside the kernel are not counted, so this sees what our code costs and not what it asks for.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import process
from benchmarks.cases import CASES, Case
from benchmarks.images import Shelf
from benchmarks.sides import ours

__all__ = ["KEPT", "PATHS", "Verdict", "main"]

KEPT = Path(__file__).with_name("guard.json")
"""Path -> turns of the plain coroutine that a request costs, by Python version."""

PATHS = ("read-4k", "view-4k", "read-4k-1tib", "write-4k", "alloc-4k")

_TOLERANCE = 0.05  # runs of one tree differ by less than 0.01
_SHORT, _LONG = 10_000, 20_000  # the shorter one has been everywhere already
_REFERENCES = re.compile(r"I\s+refs:\s+([\d,]+)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a path's cost compares with what it was.

    Attributes:
        cost: in turns of the plain coroutine.
        kept: what it was, or None if that was never measured.
    """

    path: str
    cost: float
    kept: float | None

    def within(self, tolerance: float) -> bool:
        """Whether it has not become dearer than that; cheaper is fine."""
        return self.kept is None or self.cost <= self.kept * (1 + tolerance)

    def line(self, tolerance: float) -> str:
        """For people."""
        if self.kept is None:
            return f"{self.path:18} {self.cost:8.2f} turns; nothing is kept to compare with"
        change = self.cost / self.kept - 1
        word = "ok" if self.within(tolerance) else "SLOWER"
        return f"{self.path:18} {self.cost:8.2f} turns, kept {self.kept:.2f}: {change:+.1%} {word}"


def main(arguments: Sequence[str]) -> int:
    """The command; 1 if a path has become slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks guard")
    parser.add_argument("path", nargs="*", help=f"which: {', '.join(PATHS)}")
    parser.add_argument("--store", action="store_true", help="keep what is measured")
    parser.add_argument("--tolerance", type=float, default=_TOLERANCE, help="a share (0.05)")
    wish = parser.parse_args(arguments)
    kept = _load()
    version = ".".join(platform.python_version_tuple()[:2])
    found = []
    for path, cost in _costs(wish.path or PATHS):
        verdict = Verdict(path, cost, kept.get(version, {}).get(path))
        print(verdict.line(wish.tolerance), flush=True)
        found.append(verdict)
    if wish.store:
        kept.setdefault(version, {}).update({each.path: each.cost for each in found})
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        return 0
    return int(not all(verdict.within(wish.tolerance) for verdict in found))


def _load() -> dict[str, dict[str, float]]:
    kept: dict[str, dict[str, float]] = json.loads(KEPT.read_text("utf-8"))
    return kept


def _costs(paths: Sequence[str]) -> Iterator[tuple[str, float]]:
    with TemporaryDirectory(prefix="qedasync-guard-") as folder:
        directory = Path(folder)
        turn = _turn_cost(directory)
        for case in CASES:
            if case.name in paths:
                cost = _per_request(case, directory, Shelf(directory))
                yield case.name, round(cost / turn, 3)


def _per_request(case: Case, directory: Path, shelf: Shelf) -> float:
    short, long = (_with_count(case, count) for count in (_SHORT, _LONG))
    counts = []
    for each in (short, long):
        with shelf.fresh(long.image, "qed") as files:
            (command,) = ours().commands(files, each.work)
            counts.append(_instructions(command, directory))
    return (counts[1] - counts[0]) / (_LONG - _SHORT)


def _with_count(case: Case, count: int) -> Case:
    """A stream of that length; what is rehearsed is as long."""
    work = replace(case.work, count=count)
    stream = case.image.stream and replace(case.image.stream, count=count)
    return replace(case, work=work, image=replace(case.image, stream=stream))


def _turn_cost(directory: Path) -> float:
    counts = [
        _instructions([sys.executable, "-m", "benchmarks.yardstick", str(count)], directory)
        for count in (_SHORT, _LONG)
    ]
    return (counts[1] - counts[0]) / (_LONG - _SHORT)


def _instructions(command: Sequence[str], directory: Path) -> int:
    """All that the process executes outside the kernel."""
    log = directory / "callgrind.log"
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no"]
    fixed = ["env", "PYTHONHASHSEED=0"]
    valgrind += ["--cachegrind-out-file=/dev/null", f"--log-file={log}"]
    process.run([*fixed, *valgrind, *command])
    match = _REFERENCES.search(log.read_text())
    if match is None:
        raise process.Failed(f"no count in what valgrind said: {log.read_text()[-200:]}")
    return int(match[1].replace(",", ""))
