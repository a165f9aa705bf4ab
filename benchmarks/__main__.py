"""``python -m benchmarks``: qedasync beside its rivals, as a table, a page and JSON.

``python -m benchmarks [CASE ...]`` measures; without names everything but sweeps.
``python -m benchmarks report RESULTS.json`` makes the page and the documents' tables from a file.
``python -m benchmarks guard`` compares instruction counts with those that are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import guard, page, session, table
from benchmarks.process import ROOT
from benchmarks.results import Report

_OUT = ROOT / "build" / "benchmarks"
_ROUNDS = 5
_QUICK_SECONDS = 120.0  # what is made ready, and what has no rounds, comes on top


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else list(words)
    if words[:1] == ["report"]:
        return _report(words[1:])
    if words[:1] == ["guard"]:
        return guard.main(words[1:])
    return _measure(words)


def _measure(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = session.names("full")
    several = ", ".join(session.ALIASES)
    parser.add_argument("case", nargs="*", help=f"which: {', '.join(known)}; several: {several}")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="what is promised, within 3 minutes")
    how.add_argument("--full", action="store_true", help="sweeps and all interpreters too")
    parser.add_argument("--rounds", type=int, help="counted rounds of each case (5; quick: 3)")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--python", action="append", default=[], help="one more interpreter")
    parser.add_argument("--dir", type=Path, help="where to make the images (a temporary directory)")
    parser.add_argument(
        "--out", type=Path, default=_OUT, help="where results go (build/benchmarks)"
    )
    parser.add_argument("--json", type=Path, help="write the results there as well")
    wish = parser.parse_args(words)
    wish.case = [name for word in wish.case for name in session.expanded(word)]
    unknown = set(wish.case) - set(known)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if not shutil.which("qemu-img"):
        parser.error("qemu-img is not there, and without it nothing to compare with")
    report = session.run(_plan(wish), lambda line: print(line, flush=True))
    _write(report, wish.out)
    if wish.json:
        wish.json.write_text(report.as_json(), "utf-8")
    return 0


def _plan(wish: argparse.Namespace) -> session.Plan:
    extent = "quick" if wish.quick else "full" if wish.full else "default"
    plan = session.Plan(
        wanted=wish.case or session.names(extent),
        rounds=_ROUNDS,
        loop=wish.loop,
        directory=wish.dir,
        pythons=wish.python,
    )
    if wish.quick:
        plan = replace(plan, rounds=3, divisor=2, total=_QUICK_SECONDS, warm_up=1 << 30)
    return replace(plan, rounds=wish.rounds) if wish.rounds else plan


def _write(report: Report, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "results.json": report.as_json(),
        "report.html": page.page(report),
        "table.md": table.full_table(report),
    }
    for name, text in files.items():
        (out / name).write_text(text, "utf-8")
    print(f"\n{table.full_table(report)}\nwritten: {', '.join(str(out / name) for name in files)}")


def _report(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("results", type=Path, help="a results.json")
    parser.add_argument("--html", type=Path, help="write the page there")
    parser.add_argument(
        "--update-docs",
        action="store_true",
        help="keep these results, and write their tables into README.md and docs/performance.md",
    )
    wish = parser.parse_args(words)
    report = Report.load(wish.results)
    if wish.html:
        wish.html.write_text(page.page(report), "utf-8")
    if wish.update_docs:
        table.KEPT.write_text(report.as_json(), "utf-8")
        for path in table.write_documents(report):
            print(f"changed: {path}")
    if not (wish.html or wish.update_docs):
        print(table.full_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
