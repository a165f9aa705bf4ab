"""A report as one HTML page: nothing is loaded, no script runs, the plots are drawn in it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from benchmarks import charts, words
from benchmarks.results import SWEPT, Bound, Figure, Measured, Report, Row

__all__ = ["page"]

_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #d5dae1; --soft: #57606a;
  --c0: #0b61c4; --c1: #b4500b; --c2: #1a7f37; --c3: #8250df; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0f141a; --faint: #30363d;
  --soft: #9aa4af; --c0: #6cb0ff; --c1: #ffa657; --c2: #56d364; --c3: #d2a8ff; --bad: #ff7b72; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem;
  border-bottom: 1px solid var(--faint); } h3 { font-size: 1rem; margin: 1.5rem 0 0; }
p { margin: .25rem 0 .75rem; } p.soft, figcaption { color: var(--soft); font-size: .9rem; }
code { font: .8125rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
figure { margin: 0 0 1.5rem; } figure > svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--faint); text-align: right;
  vertical-align: top; white-space: nowrap; font-size: .9rem; }
thead th { color: var(--soft); font-weight: normal; }
th:first-child { text-align: left; font-weight: normal; white-space: normal; min-width: 9rem; }
.figure { color: var(--c0); white-space: nowrap; margin-left: .5rem; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.missed { color: var(--bad); }
.grid { stroke: var(--faint); fill: none; } .axis { stroke: var(--soft); fill: none; }
.label { fill: var(--soft); font-size: 12px; }
.spread { stroke: var(--c0); stroke-width: 3; opacity: .45; } .dot { fill: var(--c0); }
.dot.missed { fill: var(--bad); } .bar { stroke: var(--ink); stroke-width: 2; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve-0 { stroke: var(--c0); } .curve-1 { stroke: var(--c1); stroke-dasharray: 7 3; }
.curve-2 { stroke: var(--c2); stroke-dasharray: 2 3; } .curve-3 { stroke: var(--c3);
  stroke-dasharray: 9 3 2 3; }
.key { margin: .25rem 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 1.5rem;
  font-size: .9rem; } .key svg { display: inline; width: 2.5rem; height: .75rem;
  margin-right: .4rem; }
details { margin: .25rem 0; } summary { color: var(--soft); font-size: .9rem; cursor: pointer; }
"""

_INTRO = (
    "Every case runs qedasync and its rivals in turn, on like files, with the same requests. A"
    " round's ratio is our rate over that of the rival who was best in that round; what is shown is"
    " the median of the rounds, and their spread. Above 1 we are faster. Rates move with the"
    " machine, so they say little; ratios from one run say more. In the table of a case, the ratio"
    " beside a rival or a limit is ours over its."
)

_CAVEATS = (
    "One machine, one disk, one run. On another machine the ratios differ; the command to find out"
    " is below.",
    "The streams are regular: equal requests, a fixed number in flight. Guests are not like that.",
    "Cached cases measure the processor and memory. Where a disk is slow, it hides all of this.",
    "A rival's processor time is that of its whole process, with its start; ours is that of the"
    " requests. The limits run on a raw file, which has no tables to look anything up in.",
    "qemu-img bench is QEMU's own driver under QEMU's own load; a virtual machine adds to both"
    " sides what these figures leave out.",
)


def page(report: Report) -> str:
    """The page."""
    when = report.about.get("date", "")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy"'
            " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            "<title>qedasync beside its rivals</title>",
            f"<style>\n{_STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            "<h1>qedasync beside its rivals</h1>",
            f'<p class="soft">{escape(when)}</p>',
            f"<p>{escape(_INTRO)}</p>",
            *_overview(report),
            *_promises(report),
            *_figures(report),
            *_groups(report),
            *_method(report),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


# ---------------------------------------------------------------------- in short


def _overview(report: Report) -> Iterator[str]:
    rows = [row for rows in report.groups().values() for row in rows if row.ratios]
    if rows:
        yield "<h2>All ratios</h2>"
        yield "<figure>"
        yield charts.ratios(rows)
        yield (
            "<figcaption>Dot: median. Line: spread of the rounds. Upright mark: what is promised;"
            " where it is missed, the dot is red. The axis is logarithmic.</figcaption>"
        )
        yield "</figure>"


def _promises(report: Report) -> Iterator[str]:
    rows = report.headline()
    if rows or report.bounds:
        yield "<h2>What is promised</h2>"
    if rows:
        head = ("case", "ratio", "spread", "promised", "aim", "share of the limit")
        yield from _table(head, map(_promise, rows))
    for bound in report.bounds:
        yield from _bound(bound)


def _promise(row: Row) -> list[str]:
    kept = words.ratio(row.ratio)
    limit = f"{words.share(row.share)} of {row.limit.name}" if row.limit else words.NONE
    return [
        f'<th scope="row">{escape(row.what)}</th>',
        f"<td>{kept}</td>" if row.holds else f'<td class="missed">{kept}</td>',
        _cell(words.spread(row.ratios)),
        _cell(words.ratio(row.bar)),
        _cell(words.ratio(row.aim)),
        _cell(limit),
    ]


def _bound(bound: Bound) -> Iterator[str]:
    yield f"<h3>{escape(bound.what)}</h3>"
    missed = "" if bound.holds else ' <strong class="missed">Missed.</strong>'
    yield f"<p>{escape(bound.text)}.{missed} {escape(bound.why)}</p>"


# ----------------------------------------------------------------------- figures


def _figures(report: Report) -> Iterator[str]:
    if report.figures:
        yield "<h2>Curves</h2>"
    for figure in report.figures:
        yield f"<h3>{escape(figure.what)}</h3>"
        yield f"<p>{escape(figure.why)}</p>"
        yield "<figure>"
        yield charts.curves(figure)
        yield "</figure>"
        yield from _numbers(figure)


def _numbers(figure: Figure) -> Iterator[str]:
    xs = sorted({x for curve in figure.curves for x, _ in curve.points})
    rows = (
        [
            f'<th scope="row">{escape(charts.x_text(figure, x))}</th>',
            *(_cell(_at(figure, dict(curve.points), x)) for curve in figure.curves),
        ]
        for x in xs
    )
    yield f"<details><summary>The numbers, and <code>{escape(figure.command)}</code></summary>"
    yield from _table([figure.x, *(curve.name for curve in figure.curves)], rows)
    yield "</details>"


def _at(figure: Figure, points: dict[float, float], x: float) -> str:
    return charts.y_text(figure, points[x]) if x in points else words.NONE


# ------------------------------------------------------------------------- cases


def _groups(report: Report) -> Iterator[str]:
    for group, rows in report.groups().items():
        yield f"<h2>{escape(group)}</h2>"
        for row in rows:
            yield from _case(row)
    swept = [row for row in report.rows if row.group == SWEPT]
    if swept:
        yield "<h2>The points of the curves</h2>"
        yield "<details><summary>Each with its spread</summary>"
        head = ("case", "ratio", "spread", "qedasync", "best rival")
        yield from _table(head, map(_point, swept))
        yield "</details>"


def _case(row: Row) -> Iterator[str]:
    ratio = f"{words.ratio(row.ratio)} ({words.spread(row.ratios)})" if row.ratios else "no rival"
    yield f'<h3>{escape(row.what)} <span class="figure">{ratio}</span></h3>'
    name = row.name.rpartition("@")[2]
    yield f"<p>{escape(row.why)} <code>python -m benchmarks {escape(name)}</code></p>"
    head = ("", "a second", "spread", "ratio", "processor time", "memory")
    yield from _table(head, (_side(row, side) for side in row.sides))
    yield "<details><summary>Commands</summary>"
    rows = (
        [f'<th scope="row">{escape(side.name)}</th>',
         f'<td class="text"><code>{escape(side.command)}</code></td>']
        for side in row.sides
    )  # fmt: skip
    yield from _table((), rows)
    yield "</details>"


def _side(row: Row, side: Measured) -> list[str]:
    low, high = min(side.rates), max(side.rates)
    cpu = words.seconds(statistics.median(side.cpu)) if side.cpu else words.NONE
    return [
        f'<th scope="row">{escape(side.name)}{" (limit)" if side.role == "limit" else ""}</th>',
        _cell(words.rate(side.rate)),
        _cell(f"{words.rate(low)} to {words.rate(high)}"),
        _cell(words.ratio(row.ratio_beside(side))),
        _cell(cpu),
        _cell(words.size(side.memory) if side.memory else words.NONE),
    ]


def _point(row: Row) -> list[str]:
    rival = row.best_rival
    return [
        f'<th scope="row">{escape(row.name)}</th>',
        _cell(words.ratio(row.ratio)),
        _cell(words.spread(row.ratios)),
        _cell(words.rate(row.ours.rate)),
        _cell(words.rate(rival.rate) if rival else words.NONE),
    ]


# ------------------------------------------------------------------------ method


def _method(report: Report) -> Iterator[str]:
    yield "<h2>How it was measured, and how quiet the machine was</h2>"
    facts = {**report.about, **report.settings, **report.noise}
    rows = (
        [f'<th scope="row">{escape(name)}</th>', f'<td class="text">{escape(text)}</td>']
        for name, text in facts.items()
    )
    yield from _table((), rows)
    yield "<h2>What these figures do not say</h2>"
    yield "<ul>"
    for caveat in _CAVEATS:
        yield f"<li>{escape(caveat)}</li>"
    yield "</ul>"
    yield "<p>In a clone: <code>python -m benchmarks</code>, with <code>--quick</code> within three"
    yield "minutes, with <code>--full</code> all of this. More in docs/performance.md.</p>"


# ------------------------------------------------------------------------ tables


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield '<div class="scroll" tabindex="0"><table>'
    if head:
        cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
        yield f"<thead><tr>{cells}</tr></thead>"
    yield "<tbody>"
    for row in rows:
        yield f"<tr>{''.join(row)}</tr>"
    yield "</tbody></table></div>"
