"""A report as one HTML page: nothing is loaded, no script runs, the plots are drawn in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from time import localtime, strftime
from typing import TYPE_CHECKING

import qedasync
from qedasync.bench.facts import Direction, directions
from qedasync.bench.histogram import Histogram
from qedasync.bench.numbers import bandwidth, duration, io_size, short
from qedasync.bench.plot import Curve, linear_axis, log_axis, plot

if TYPE_CHECKING:
    from qedasync.bench.report import Report

__all__ = ["page"]

_A_DECADE = 20  # bins of the distribution in a power of ten
_MOST_POINTS = 360  # of a curve over time
_PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
_KINDS = ("read", "write", "trim")

_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #d5dae1; --soft: #57606a;
  --read: #0b61c4; --write: #b4500b; --trim: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0f141a; --faint: #30363d;
  --soft: #9aa4af; --read: #6cb0ff; --write: #ffa657; --trim: #56d364; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.when { color: var(--soft); margin-top: 0; }
code { font: .875rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--faint); text-align: right;
  vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; } table.facts td { text-align: left; white-space: normal;
  overflow-wrap: anywhere; } table.facts th { color: var(--soft); font-weight: normal; }
.grid { stroke: var(--faint); fill: none; } .axis { stroke: var(--soft); fill: none; }
.label { fill: var(--soft); font-size: 12px; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve-0 { stroke: var(--read); } .curve-1 { stroke: var(--write); stroke-dasharray: 7 3; }
.curve-2 { stroke: var(--trim); stroke-dasharray: 2 3; }
.key { margin: 0 0 .25rem; padding: 0; list-style: none; display: flex; gap: 1.5rem; }
.key svg { display: inline; width: 2.5rem; height: .75rem; margin-right: .4rem; }
"""


def page(report: Report) -> str:
    """The page; characters that are no text (of names that are none) are left as they are."""
    done = [each for each in directions(report.result) if each.count]
    workload = report.result.workload
    title = f"{workload.rw}, {io_size(workload.block_size)}, {workload.in_flight} in flight"
    started = strftime("%Y-%m-%d %H:%M:%S %z", localtime(report.result.started))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy"'
            " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>qedasync bench: {escape(title)}</title>",
            f"<style>\n{_STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>qedasync bench: {escape(title)}</h1>",
            f'<p class="when">{escape(started)}, {_seconds(report.result.elapsed_ns)}</p>',
            *_summary(done),
            *_distribution(done),
            *_over_time(report, done),
            *_facts(report),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _seconds(ns: float) -> str:
    return f"{ns / 1e9:.2f} s"


# ------------------------------------------------------------------------ tables


def _summary(done: Sequence[Direction]) -> Iterator[str]:
    yield "<h2>Results</h2>"
    if not done:
        yield "<p>No operation was finished.</p>"
        return
    head = ["", "operations", "IOPS", "bandwidth", "mean"]
    head += [*(f"{percent:g}%" for percent in _PERCENTS), "longest"]
    rows = [_summary_row(each) for each in done]
    yield from _table("Latencies are the time from a request to its answer.", head, rows)


def _summary_row(each: Direction) -> list[str]:
    values = each.times.percentiles(_PERCENTS)
    return [
        each.name,
        f"{each.count:,}",
        f"{each.per_second:,.0f}",
        bandwidth(each.per_second * each.length).partition(" ")[0],
        *map(_duration, (each.times.mean, *values, each.times.largest)),
    ]


def _facts(report: Report) -> Iterator[str]:
    yield "<h2>How it was measured</h2>"
    rows = [("command", report.command)] if report.command else []
    yield '<table class="facts">'
    for name, text in [*rows, *report.own_lines(), ("version", qedasync.__version__)]:
        shown = f"<code>{escape(text)}</code>" if name == "command" else escape(text)
        yield f'<tr><th scope="row">{escape(name)}</th><td>{shown}</td></tr>'
    yield "</table>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield '<div class="scroll" tabindex="0">'
    yield f"<table><caption>{escape(caption)}</caption>"
    titles = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    yield f"<tr>{titles}</tr>"
    for name, *values in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        yield f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    yield "</table></div>"


# ------------------------------------------------------------------------- plots


def _distribution(done: Sequence[Direction]) -> Iterator[str]:
    yield "<h2>Latency distribution</h2>"
    if not done:
        return
    curves = [Curve(each.name, _style(each), _shares(each.times)) for each in done]
    low = min(each.times.smallest for each in done)
    high = max(each.times.largest for each in done)
    most = max(share for curve in curves for _, share in curve.points)
    says = [
        f"Half of the {each.name}s took at most {_duration(each.times.percentile(50))},"
        f" 99 percent at most {_duration(each.times.percentile(99))},"
        f" the longest {_duration(each.times.largest)}."
        for each in done
    ]
    drawn = plot(
        "latency",
        "Latency distribution",
        " ".join(says),
        log_axis("latency", max(1, low), high, _duration),
        linear_axis("share of operations, %", most, lambda value: f"{value:g}"),
        curves,
    )
    data = [[curve.name, _duration(at), f"{share:.2f}"] for curve in curves
            for at, share in curve.points if share]  # fmt: skip
    yield from _figure(drawn, done, " ".join(says), ["", "latency up to", "share, %"], data)


def _shares(times: Histogram) -> list[tuple[float, float]]:
    """(latency, percentage of operations) of bins of equal ratio, empty ones between them too."""
    bins: dict[int, int] = {}
    for _, middle, count in times.filled():
        number = math.floor(math.log10(max(middle, 1)) * _A_DECADE)
        bins[number] = bins.get(number, 0) + count
    n = len(times)
    return [
        (10 ** ((number + 1) / _A_DECADE), 100 * bins.get(number, 0) / n)
        for number in range(min(bins) - 1, max(bins) + 2)
    ]


def _over_time(report: Report, done: Sequence[Direction]) -> Iterator[str]:
    yield "<h2>Operations over time</h2>"
    if not done:
        return
    seconds = report.result.elapsed_ns / 1e9
    least = max(0.05, seconds / _MOST_POINTS)
    curves = [
        Curve(each.name, _style(each), report.result.series.rates(_style(each), least))
        for each in done
    ]
    most = max((rate for curve in curves for _, rate in curve.points), default=0.0)
    says = [
        f"{each.name.capitalize()}s went at {each.iops.least:,.0f} to {each.iops.most:,.0f}"
        f" operations a second, {each.per_second:,.0f} on average."
        for each in done
    ]
    drawn = plot(
        "iops",
        "Operations a second over time",
        " ".join(says),
        linear_axis("seconds", seconds, lambda value: f"{value:g}", exact=True),
        linear_axis("operations a second", most, _rate),
        curves,
    )
    data = [[curve.name, f"{at:.2f}", f"{rate:,.0f}"] for curve in curves
            for at, rate in curve.points]  # fmt: skip
    yield from _figure(drawn, done, " ".join(says), ["", "until second", "IOPS"], data)


def _figure(
    drawn: str,
    done: Sequence[Direction],
    says: str,
    head: Sequence[str],
    data: Sequence[Sequence[str]],
) -> Iterator[str]:
    yield "<figure>"
    yield '<ul class="key">'
    for each in done:
        yield (
            '<li><svg viewBox="0 0 40 12" aria-hidden="true">'
            f'<path class="curve curve-{_style(each)}" d="M0 6H40"/></svg>{each.name}s</li>'
        )
    yield "</ul>"
    yield drawn
    yield f"<figcaption>{escape(says)}</figcaption>"
    yield "</figure>"
    yield "<details><summary>The numbers of this plot</summary>"
    yield from _table("As they are drawn", head, data)
    yield "</details>"


def _style(each: Direction) -> int:
    return _KINDS.index(each.name)


def _rate(value: float) -> str:
    digits, unit = short(value)
    return f"{float(digits):g}{unit}"


def _duration(ns: float) -> str:
    return duration(ns, "µs")
