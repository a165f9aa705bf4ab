"""Numbers as fio writes them: four characters and a unit."""

from __future__ import annotations

__all__ = ["bandwidth", "duration", "duration_unit", "fixed", "io_size", "short"]

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_WIDTH = 4


def short(value: float, base: int = 1000) -> tuple[str, str]:
    """At most four characters, and the letter of the unit: ``("10.7", "k")``, ``("9999", "")``."""
    power = 0
    while round(value) >= 10**_WIDTH and power < len(_PREFIXES) - 1:
        value /= base
        power += 1
    digits = len(str(int(value)))
    decimals = max(0, _WIDTH - 1 - digits) if power else 0
    return f"{value:.{decimals}f}"[: max(_WIDTH, digits)].rstrip("."), _PREFIXES[power]


def io_size(size: float, base: int = 1024, first: str = "B") -> str:
    """Bytes: ``"3888KiB"``, ``"41.7MiB"``; with a base of 1000 ``"43.8MB"``."""
    text, prefix = short(size, base)
    if not prefix:
        return text + first
    return f"{text}{prefix.upper()}i{first}" if base == 1024 else f"{text}{prefix}{first}"


def bandwidth(per_second: float) -> str:
    """``"41.7MiB/s (43.8MB/s)"``."""
    return f"{io_size(per_second)}/s ({io_size(per_second, 1000)}/s)"


def fixed(value: float, width: int) -> str:
    """Two decimals at least so wide; without them what is too long for it."""
    text = f"{value:.2f}"
    return f"{text if len(text) <= width + 2 else f'{value:.1f}':>{width}}"


def duration_unit(least: float, mean: float) -> tuple[str, int]:
    """The name and nanoseconds of the unit to show times in, so that the digits that matter stay:
    microseconds for most, others where these say too little."""
    if mean < 2_000:
        return "nsec", 1
    return ("usec", 1_000) if least < 2_000_000 else ("msec", 1_000_000)


def duration(ns: float, micro: str = "us") -> str:
    """A time with three digits: ``"812 ns"``, ``"4.07 us"``, ``"1.2 s"``."""
    for unit, size in (("s", 1e9), ("ms", 1e6), (micro, 1e3)):
        if ns >= 0.9995 * size:
            return f"{ns / size:.3g} {unit}" if ns < 999.5 * size else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"
