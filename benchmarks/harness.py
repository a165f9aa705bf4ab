"""Side by side, in turn: a round runs every side once, each on a file like the others'.

The order is turned round from one round to the next, so that nobody always runs in another's wake.
The first round does not count: it makes files and warms caches. Machines are noisy; only ratios
within one round are worth quoting, and what is reported is their median and spread.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.cases import Case
from benchmarks.images import Shelf, drop_cache
from benchmarks.process import Failed
from benchmarks.results import Measured, Row
from benchmarks.sides import Sample, Side

__all__ = ["run_case"]


def run_case(
    case: Case, ours: Sequence[Side], rounds: int, shelf: Shelf, seconds: float = math.inf
) -> Row:
    """All rounds of one case, after one that does not count; after ``seconds`` no further one
    begins, once one has counted.

    A rival or a limit that does not run here is left out from then on; that we run is taken for
    granted.

    Raises:
        Failed: we do not run.
    """
    sides = [*ours, *case.sides]
    measured = {side.name: _measured(side, case) for side in sides}
    deadline = time.monotonic() + seconds
    try:
        for number in range(rounds + 1):
            if number > 1 and time.monotonic() > deadline:
                break
            for side in _turned(sides, number):
                sample = _try(side, case, shelf)
                if sample is None:
                    sides.remove(side)
                    del measured[side.name]
                elif number:
                    measured[side.name].add(sample)
    finally:
        shelf.forget(case.name)
    return Row(
        case.name,
        case.group,
        case.what,
        case.why,
        list(measured.values()),
        bar=case.bar,
        aim=case.aim,
        share_aim=case.share,
    )


def _measured(side: Side, case: Case) -> Measured:
    return Measured(side.name, side.role, side.shown(case.work))


def _turned(sides: Sequence[Side], number: int) -> list[Side]:
    return list(sides if number % 2 else reversed(sides))


def _try(side: Side, case: Case, shelf: Shelf) -> Sample | None:
    try:
        with _files(side, case, shelf) as files:
            if case.cold:
                for file in files:
                    drop_cache(file)
            return side.run(files, case.work)
    except Failed as error:
        if side.role == "ours":
            raise
        print(f"{case.name}: left out: {error}", file=sys.stderr)
        return None


@contextmanager
def _files(side: Side, case: Case, shelf: Shelf) -> Iterator[list[str]]:
    if not case.fresh:
        yield shelf.standing(case.image, side.file, case.n_images)
        return
    with shelf.fresh(case.image, side.file) as files:
        yield files
