"""The page's drawings: ratios with their spread, and curves over what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks import words
from benchmarks.results import Figure, Row
from qedasync.bench.plot import Axis, Curve, linear_axis, log_axis, plot

__all__ = ["curves", "ratios", "x_text", "y_text"]

_WIDTH, _LEFT, _RIGHT, _LINE, _TOP = 720, 170, 70, 22, 28


def ratios(rows: Sequence[Row]) -> str:
    """A line for each row: the spread of its ratios, their median, and what is promised."""
    axis = _ratio_axis(rows)
    height = _TOP + len(rows) * _LINE + 8
    says = "; ".join(f"{row.name} {words.ratio(row.ratio)}" for row in rows)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="ratios-title">',
        f'<title id="ratios-title">Ratios to the best rival: {escape(says)}</title>',
    ]
    for value, text in axis.ticks:
        kind = "axis" if value == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{_x(axis, value):.1f} {_TOP - 4}V{height}"/>')
        parts.append(_text(_x(axis, value), _TOP - 10, text, "middle"))
    for number, row in enumerate(rows):
        parts += _ratio_line(axis, row, _TOP + number * _LINE + _LINE // 2)
    return "\n".join([*parts, "</svg>"])


def _ratio_line(axis: Axis, row: Row, y: float) -> list[str]:
    low, high, middle = (
        _x(axis, value) for value in (min(row.ratios), max(row.ratios), row.ratio or 0.0)
    )
    dot = "dot" if row.holds else "dot missed"
    parts = [
        _text(_LEFT - 8, y + 4, row.name, "end"),
        f'<path class="spread" d="M{low:.1f} {y}H{high:.1f}"/>',
        f'<circle class="{dot}" cx="{middle:.1f}" cy="{y}" r="5"/>',
        _text(_WIDTH - _RIGHT + 8, y + 4, words.ratio(row.ratio), "start"),
    ]
    if row.bar is not None:
        at = _x(axis, row.bar)
        parts.append(f'<path class="bar" d="M{at:.1f} {y - 8}V{y + 8}"/>')
    return parts


def _ratio_axis(rows: Sequence[Row]) -> Axis:
    """Powers of two around all that is drawn."""
    values = [1.0, *(row.bar for row in rows if row.bar is not None)]
    values += [ratio for row in rows for ratio in row.ratios]
    low = high = 1.0
    while low > min(values):
        low /= 2
    while high < max(values):
        high *= 2
    ticks, value = [], low
    while value <= high:
        text = f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
        ticks.append((value, text + words.TIMES))
        value *= 2
    return Axis("", low, high, ticks, log=True)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _RIGHT - _LEFT)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def curves(figure: Figure) -> str:
    """The figure's plot, with a key."""
    drawn = [Curve(each.name, each.style, each.points) for each in figure.curves]
    says = "; ".join(
        f"{each.name}: {y_text(figure, each.points[0][1])} to {y_text(figure, each.points[-1][1])}"
        for each in figure.curves
    )
    svg = plot(figure.name, figure.what, says, _x_axis(figure), _y_axis(figure), drawn)
    return f"{_key(figure)}\n{svg}"


def _key(figure: Figure) -> str:
    items = (
        '<li><svg viewBox="0 0 40 12" aria-hidden="true">'
        f'<path class="curve curve-{each.style}" d="M0 6H40"/></svg>{escape(each.name)}</li>'
        for each in figure.curves
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def _x_axis(figure: Figure) -> Axis:
    values = sorted({x for each in figure.curves for x, _ in each.points})
    ticks = [(value, x_text(figure, value)) for value in values]
    return Axis(figure.x, values[0], values[-1], ticks, log=True)


def x_text(figure: Figure, value: float) -> str:
    """A value along the axis."""
    if figure.x_unit == "%":
        return f"{100 - 100 / value:.6g}"
    return words.size(value) if figure.x_unit == "B" else f"{value:g}"


def _y_axis(figure: Figure) -> Axis:
    values = [y for each in figure.curves for _, y in each.points]
    if figure.y_unit == "/s":
        return linear_axis(figure.y, max(values), _rate_mark)
    return log_axis(figure.y, min(values), max(values), lambda y: y_text(figure, y))


def _rate_mark(per_second: float) -> str:
    return words.rate(per_second).removesuffix("/s").replace(" ", "")


def y_text(figure: Figure, value: float) -> str:
    """A value of a curve."""
    return words.rate(value) if figure.y_unit == "/s" else words.seconds(value / 1e9)
