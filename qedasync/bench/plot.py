"""Line plots as SVG: curves over axes, with words for those who do not see them.

Knows nothing of images or benchmarks. Colours and dashes come from the page's style sheet, by the
classes ``curve-0``, ``curve-1`` and so on, ``grid``, ``axis`` and ``label``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Curve", "linear_axis", "log_axis", "plot"]

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 16, 48


@dataclass(frozen=True, slots=True)
class Axis:
    """What runs along one side.

    Attributes:
        label: what it shows.
        low, high: the ends.
        ticks: (value, text) of the marks.
        log: whether equal steps are equal ratios.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points.

    Attributes:
        style: number of its class.
    """

    name: str
    style: int
    points: Sequence[tuple[float, float]]


def linear_axis(
    label: str, high: float, text: Callable[[float], str], *, exact: bool = False
) -> Axis:
    """From 0 to ``high``, or to the mark after it unless ``exact``; marks are at round numbers."""
    high = max(high, 1e-9)
    step = _round_step(high / 5)
    marks = math.floor(high / step) if exact else math.ceil(high / step)
    ticks = [(n * step, text(n * step)) for n in range(marks + 1)]
    return Axis(label, 0.0, high if exact else marks * step, ticks)


def log_axis(label: str, low: float, high: float, text: Callable[[float], str]) -> Axis:
    """From the power of ten at or below ``low`` to the one at or above ``high``."""
    first = math.floor(math.log10(max(low, 1.0)) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(max(high, 1.0)) - 1e-9))
    ticks = [(10.0**power, text(10.0**power)) for power in range(first, last + 1)]
    return Axis(label, 10.0**first, 10.0**last, ticks, log=True)


def plot(name: str, title: str, description: str, x: Axis, y: Axis, curves: Sequence[Curve]) -> str:
    """An ``svg`` element.

    Args:
        name: unique in the page; for the ids.
        description: says in words what the curves show.
    """
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-desc">{escape(description)}</desc>',
        *_across(x),
        *_upwards(y),
        *(_line(x, y, curve) for curve in curves if curve.points),
        "</svg>",
    ]
    return "\n".join(parts)


def _across(axis: Axis) -> list[str]:
    foot = _HEIGHT - _BOTTOM
    parts = []
    for value, text in axis.ticks:
        at = _x(axis, value)
        parts += [
            f'<path class="grid" d="M{at:.1f} {_TOP}V{foot}"/>',
            f'<text class="label" x="{at:.1f}" y="{foot + 18}" text-anchor="middle">'
            f"{escape(text)}</text>",
        ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [
        *parts,
        f'<path class="axis" d="M{_LEFT} {foot}H{_WIDTH - _RIGHT}"/>',
        f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(axis.label)}</text>",
    ]


def _upwards(axis: Axis) -> list[str]:
    parts = []
    for value, text in axis.ticks:
        at = _y(axis, value)
        parts += [
            f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>',
            f'<text class="label" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">'
            f"{escape(text)}</text>",
        ]
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        *parts,
        f'<text class="label" transform="translate(14 {middle}) rotate(-90)"'
        f' text-anchor="middle">{escape(axis.label)}</text>',
    ]


def _line(x: Axis, y: Axis, curve: Curve) -> str:
    points = " ".join(f"{_x(x, at):.1f},{_y(y, value):.1f}" for at, value in curve.points)
    return f'<polyline class="curve curve-{curve.style}" points="{points}"/>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _RIGHT - _LEFT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _BOTTOM - _TOP)


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((n * power for n in (1.0, 2.0, 5.0) if n * power >= step * (1 - 1e-9)), 10 * power)
