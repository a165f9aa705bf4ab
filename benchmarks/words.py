"""Numbers for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.results import Bound, Figure, Row

__all__ = ["NONE", "TIMES", "line", "rate", "ratio", "seconds", "share", "size", "spread"]


NONE, TIMES = "-", "\N{MULTIPLICATION SIGN}"


def rate(per_second: float) -> str:
    """``"412 K/s"``, ``"9.1 K/s"``, ``"850 /s"``, ``"0.42 /s"``."""
    for unit, factor in ((" M/s", 1e6), (" K/s", 1e3)):
        if per_second >= 0.9995 * factor:
            return _three(per_second / factor) + unit
    return _three(per_second) + " /s"


def ratio(value: float | None) -> str:
    """``"1.22"`` and the times sign; a dash for None."""
    return NONE if value is None else _plain(value) + TIMES


def spread(values: Sequence[float]) -> str:
    """``"1.16 to 1.35"``; a dash for none."""
    return f"{_plain(min(values))} to {_plain(max(values))}" if values else NONE


def share(value: float | None) -> str:
    """``"0.52"``; a dash for None."""
    return NONE if value is None else f"{value:.2f}"


def size(n_bytes: float) -> str:
    """``"64 TiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n_bytes < 1024 or unit == "TiB":
            break
        n_bytes /= 1024
    return f"{_three(n_bytes)} {unit}"


def seconds(value: float) -> str:
    """``"1.2 s"``, ``"4.07 ms"``, ``"812 ns"``."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * factor:
            return f"{_three(value / factor)} {unit}"
    return f"{_three(value * 1e9)} ns"


def line(part: Row | Figure | Bound) -> str:
    """An outcome as a line for the terminal."""
    if isinstance(part, Row):
        return f"{part.name:24} {'; '.join(_row_parts(part))}"
    if isinstance(part, Figure):
        return f"{part.name:24} {len(part.curves)} curves"
    return f"{part.name:24} {'holds' if part.holds else 'MISSED'}: {part.text}"


def _row_parts(row: Row) -> Iterator[str]:
    yield f"{ratio(row.ratio):>7} ({spread(row.ratios)})"
    if row.bar is not None:
        yield f"promised {ratio(row.bar)}: {'holds' if row.holds else 'MISSED'}"
    yield rate(row.ours.rate)
    if row.best_rival is not None:
        yield f"{row.best_rival.name} {rate(row.best_rival.rate)}"
    if row.limit is not None:
        yield f"{share(row.share)} of {row.limit.name}"


def _plain(value: float) -> str:
    """A ratio: two decimals, one from 10 on, none from 100 on."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def _three(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
