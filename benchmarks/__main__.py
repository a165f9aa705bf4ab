"""``python -m benchmarks [CASE ...]``: the speed table, our ratios against ``qemu-img``.

``jobs`` stands for all jobs on whole images; see :mod:`benchmarks.jobs`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.harness import Result, run_case, warm_up
from benchmarks.jobs import JOBS, prepare, run_job
from benchmarks.limits import loop_delay, open_cost

_LIMITS = {"open-64tib": open_cost, "loop-delay": loop_delay}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    jobs = [job.name for job in JOBS]
    names = [case.name for case in CASES] + list(_LIMITS) + jobs
    parser.add_argument("case", nargs="*", help=f"which: {', '.join(names)}, jobs (all)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each case (5)")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--dir", type=Path, help="where to make the images (a temporary directory)")
    wish = parser.parse_args()
    if "jobs" in wish.case:
        wish.case = [name for name in wish.case if name != "jobs"] + jobs
    unknown = set(wish.case) - set(names)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    wanted = wish.case or names
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=wish.dir, prefix="qedasync-bench-") as directory:
        warm_up(Path(directory))
        for case in CASES:
            if case.name in wanted:
                result = run_case(case, wish.rounds, Path(directory), wish.loop)
                rows.append(result.as_dict())
                _print_ratio(result)
        for name, measure in _LIMITS.items():
            if name in wanted:
                row = measure(Path(directory), wish.loop)
                rows.append(row)
                print(f"{name:16} {row['text']}", flush=True)
        rows += _run_jobs(wanted, wish.rounds, Path(directory), wish.loop)
    if wish.json:
        about = {"python": platform.python_version(), "kernel": platform.release()}
        wish.json.write_text(json.dumps({"about": about, "loop": wish.loop, "results": rows}))


def _run_jobs(wanted: list[str], rounds: int, folder: Path, loop: str) -> list[dict[str, object]]:
    jobs = [job for job in JOBS if job.name in wanted]
    prepare(jobs, folder)
    rows = []
    for job in jobs:
        result = run_job(job, rounds, folder, loop)
        print(result.line(), flush=True)
        rows.append(result.as_dict())
    return rows


def _print_ratio(result: Result) -> None:
    ratios = result.ratios
    verdict = "holds" if result.ratio >= result.case.bar else "MISSED"
    ours, theirs, bare = max(result.ours), max(result.theirs), max(result.bare)
    print(
        f"{result.case.name:16} {result.ratio:6.2f}x  ({min(ratios):.2f} to {max(ratios):.2f};"
        f" bar {result.case.bar:g}x {verdict})  best rounds: {ours / 1e3:.1f} K/s, qemu-img"
        f" {theirs / 1e3:.1f} K/s ({result.modes[-1]}), bare calls {bare / 1e3:.1f} K/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
