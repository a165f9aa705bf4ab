"""Results with known figures, and sides that need no program but this Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from benchmarks.images import Recipe
from benchmarks.process import Ended
from benchmarks.results import Bound, Curve, Figure, Measured, Report, Row
from benchmarks.sides import Role, Side
from benchmarks.workload import Workload

WORK = Workload(count=100, block=4096, step=4096, size=1 << 20, depth=4)
IMAGE = Recipe(1 << 20)


def measured(name: str, role: Role, *rates: float) -> Measured:
    return Measured(name, role, f"{name} IMAGE", list(rates), [1e-6] * len(rates), 1 << 20)


def row(name: str = "read", bar: float | None = 2.0, group: str = "Reads") -> Row:
    """Ratios 2, 1.5 and 4: the rival who is best changes from round to round."""
    sides = [
        measured("qedasync", "ours", 200.0, 300.0, 400.0),
        measured("slow & <steady>", "rival", 100.0, 100.0, 100.0),
        measured("moody", "rival", 50.0, 200.0, 50.0),
        measured("bare", "limit", 400.0, 400.0, 400.0),
    ]
    return Row(name, group, f"What {name} does", "Because.", sides, bar=bar, aim=3.0)


def report() -> Report:
    curve = Curve("qedasync", 0, [(1.0, 1000.0), (64.0, 5000.0)])
    return Report(
        about={"processor": "2 cores, Fast & Co", "python": "CPython 3.11.7", "date": "today"},
        settings={"rounds": "3"},
        noise={"duration": "1.0 minutes"},
        rows=[row(), row("write", bar=None, group="Writes"), row("read@1", None, "Swept")],
        figures=[Figure("sweep", "Swept", "Reads by depth", "Why", "depth", "rate", [curve])],
        bounds=[Bound("open", "Opening", "Reads little.", "3 ms (bar 2)", False, {"ms": 3.0})],
    )


def side(name: str, role: Role, program: str, *, file: str = "raw") -> Side:
    """Runs a line of Python, which finds the file in ``sys.argv`` and prints its seconds."""

    def commands(files: Sequence[str], work: Workload) -> list[list[str]]:
        return [[sys.executable, "-c", program, *files]]

    def took(ended: Ended, work: Workload) -> dict[str, float]:
        return {"seconds": float(json.loads(ended.stdout))}

    return Side(name, role, file, commands, took)  # type: ignore[arg-type]
