"""The results as Markdown, and their place in the documents.

A document has a pair of marks for each table; what is between them is written here and nowhere
else. A test makes the tables anew from the results that are kept, and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import words
from benchmarks.process import ROOT
from benchmarks.results import Report, Row

__all__ = ["DOCUMENTS", "KEPT", "full_table", "short_table", "updated"]

KEPT = ROOT / "benchmarks" / "results.json"
"""The results that the documents show."""

_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def short_table(report: Report) -> str:
    """What we promise, and what bounds us."""
    head = ("case", "ratio", "spread", "promised", "aim", "share of the limit")
    rows = (_short_row(row) for row in report.headline())
    return "\n".join([*_told(report), "", *_table(head, rows), "", *_bounds(report), ""])


def full_table(report: Report) -> str:
    """Every case, by group."""
    head = ("case", "qedasync", "best rival", "", "ratio", "spread", "share of the limit")
    parts = [*_told(report), ""]
    for group, rows in report.groups().items():
        parts += [f"### {group}", "", *_table(head, map(_full_row, rows)), ""]
    return "\n".join([*parts, *_bounds(report), ""])


def updated(text: str, table: str) -> str:
    """A document with what is between its marks replaced.

    Raises:
        ValueError: it does not have both marks, in order.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError("the document has no marks for the table")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


DOCUMENTS = {
    ROOT / "README.md": short_table,
    ROOT / "docs" / "performance.md": full_table,
}
"""Document -> what stands between its marks."""


def write_documents(report: Report) -> Iterator[Path]:
    """Write the tables into the documents; answers which have changed."""
    for path, table in DOCUMENTS.items():
        old = path.read_text("utf-8")
        new = updated(old, table(report))
        if new != old:
            path.write_text(new, "utf-8")
            yield path


def _told(report: Report) -> list[str]:
    facts = [report.about[name] for name in ("processor", "kernel") if name in report.about]
    facts += [
        f"{name} {report.about[name].partition(' (')[0]}"
        for name in ("python", "uvloop", "qemu-img", "fio")
        if name in report.about
    ]
    how = ", ".join(f"{name}: {text}" for name, text in report.settings.items())
    noise = ", ".join(f"{name}: {text}" for name, text in report.noise.items())
    return [f"{', '.join(facts)}. {how}. {noise}."]


def _short_row(row: Row) -> tuple[str, ...]:
    return (
        f"{row.what} (`{row.name}`)",
        words.ratio(row.ratio),
        words.spread(row.ratios),
        words.ratio(row.bar),
        words.ratio(row.aim),
        _share(row),
    )


def _full_row(row: Row) -> tuple[str, ...]:
    rival = row.best_rival
    return (
        f"{row.what} (`{row.name}`)",
        words.rate(row.ours.rate),
        words.rate(rival.rate) if rival else words.NONE,
        rival.name if rival else "",
        words.ratio(row.ratio),
        words.spread(row.ratios),
        _share(row),
    )


def _share(row: Row) -> str:
    return f"{words.share(row.share)} of {row.limit.name}" if row.limit else words.NONE


def _bounds(report: Report) -> list[str]:
    return [f"- {bound.what} (`{bound.name}`): {bound.text}" for bound in report.bounds]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [_line(head), _line("---" for _ in head), *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
