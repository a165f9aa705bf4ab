"""A run of the benchmark: which cases, how thoroughly, and what came of it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import interpreters, jobs, limits, nbd, nbd_servers, noise, words
from benchmarks.cases import CASES, Case
from benchmarks.harness import run_case
from benchmarks.images import Shelf, warm_up
from benchmarks.results import SWEPT, Bound, Figure, Report, Row
from benchmarks.sides import Side, ours
from benchmarks.sweeps import SWEEPS, Sweep

__all__ = ["ALIASES", "Plan", "expanded", "names", "run"]

_PYTHONS, _IDLE = "pythons", "nbd-idle-memory"
ALIASES = {
    "jobs": [job.name for job in jobs.JOBS],
    "nbd": [*(case.name for case in nbd.NBD_CASES), _IDLE],
    "sweeps": [sweep.name for sweep in SWEEPS],
}
"""Word -> the cases it stands for."""

_COMPARED = ("read-4k", "write-4k", "alloc-4k")
"""What is run on every interpreter and loop."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        wanted: names of cases, bounds, jobs, sweeps; see :func:`names`.
        rounds: counted rounds of each case.
        divisor: how many times fewer requests than a case has.
        seconds: after which no further round of a case begins.
        total: seconds that all cases may take together: what is left is shared by those to come.
        loop: of our side.
        directory: where the images are made, or None for the usual place of temporary files.
        pythons: more interpreters for ``pythons``.
        warm_up: bytes that are written once at first.
    """

    wanted: Sequence[str]
    rounds: int = 5
    divisor: int = 1
    seconds: float = math.inf
    total: float = math.inf
    loop: str = "uvloop"
    directory: Path | None = None
    pythons: Sequence[str] = ()
    warm_up: int = 6 << 30


def names(extent: str) -> list[str]:
    """The names that ``"quick"``, ``"default"`` or ``"full"`` stand for."""
    headline = [case.name for case in CASES if case.is_headline]
    bounds = [*limits.BOUNDS, limits.LATENCY]
    if extent == "quick":
        return [*headline, *bounds]
    every = [*(case.name for case in CASES), *bounds, *ALIASES["jobs"], *ALIASES["nbd"]]
    return every if extent == "default" else [*every, *ALIASES["sweeps"], _PYTHONS]


def expanded(word: str) -> list[str]:
    """What a word of the command line stands for: some for several cases, others for one."""
    return ALIASES.get(word, [word])


def run(plan: Plan, say: Callable[[str], None]) -> Report:
    """Run it; each line is told as it comes."""
    report, quiet = Report(), noise.Noise()
    with TemporaryDirectory(dir=plan.directory, prefix="qedasync-bench-") as folder:
        directory = Path(folder)
        report.about = noise.about(directory)
        report.settings = {
            "rounds": f"{plan.rounds}" if plan.seconds == math.inf else f"at most {plan.rounds}",
            "requests": "all" if plan.divisor == 1 else f"1 in {plan.divisor}",
            "loop": plan.loop,
        }
        say("warming up")
        warm_up(directory, plan.warm_up)
        deadline = time.monotonic() + plan.total
        for part in _Run(plan, directory, Shelf(directory), deadline).parts():
            quiet.pulse()
            say(words.line(part))
            report.add(part)
    report.noise = quiet.summary()
    return report


@dataclass(frozen=True, slots=True)
class _Run:
    """The parts of a plan, one after the other."""

    plan: Plan
    directory: Path
    shelf: Shelf
    deadline: float

    def parts(self) -> Iterator[Row | Figure | Bound]:
        wanted = set(self.plan.wanted)
        chosen = [case for case in CASES if case.name in wanted]
        for number, case in enumerate(chosen):
            yield self._case(case, [ours(self.plan.loop)], len(chosen) - number)
        yield from self._without_rival(wanted)
        yield from self._jobs(wanted)
        yield from self._nbd(wanted)
        for sweep in SWEEPS:
            if sweep.name in wanted:
                yield from self._sweep(sweep)
        if _PYTHONS in wanted:
            yield from self._pythons()

    def _case(self, case: Case, sides: Sequence[Side], left: int = 1) -> Row:
        """One case; ``left`` of them have to share the time that is left."""
        plan = self.plan
        seconds = min(plan.seconds, (self.deadline - time.monotonic()) / left)
        return run_case(case.shortened(plan.divisor), sides, plan.rounds, self.shelf, seconds)

    def _sweep(self, sweep: Sweep) -> Iterator[Row | Figure]:
        rows = []
        for value in sweep.values:
            case = replace(sweep.case(value), group=SWEPT, bar=None)
            row = self._case(case, [ours(self.plan.loop)])
            rows.append(row)
            yield row
        yield sweep.figure(rows)

    def _without_rival(self, wanted: Set[str]) -> Iterator[Figure | Bound]:
        for name, measure in limits.BOUNDS.items():
            if name in wanted:
                yield measure(self.shelf, self.plan.loop)
        if limits.LATENCY in wanted:
            yield limits.latency(self.shelf, self.plan.loop)

    def _jobs(self, wanted: Set[str]) -> Iterator[Row]:
        chosen = [job for job in jobs.JOBS if job.name in wanted]
        jobs.prepare(chosen, self.directory)
        for job in chosen:
            yield jobs.run_job(job, self.plan.rounds, self.directory, self.plan.loop)

    def _nbd(self, wanted: Set[str]) -> Iterator[Row | Bound]:
        for case in nbd.NBD_CASES:
            if case.name in wanted:
                yield from self._nbd_case(case)
        if _IDLE in wanted:
            yield nbd.idle_memory(self.directory)

    def _nbd_case(self, case: nbd.NbdCase) -> Iterator[Row]:
        try:
            yield nbd.run_nbd_case(case, self.plan.rounds, self.directory)
        except nbd_servers.RunError as error:
            print(f"{case.name}: left out: {error}", file=sys.stderr)

    def _pythons(self) -> Iterator[Row]:
        sides = interpreters.variants(interpreters.find(self.plan.pythons))
        for case in CASES:
            if case.name in _COMPARED:
                name = f"{case.name}@pythons"
                image = replace(case.image, owner=name if case.image.owner else "")
                group = "Interpreters and loops"
                case = replace(case, name=name, group=group, image=image, bar=None)
                yield self._case(case, sides)
