"""What fio's words ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qedasync.bench import Pattern, Workload
from qedasync.cli.bench.options import CHECKS, RW
from qedasync.cli.bench.qemu import aio_word, integer
from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.sizes import number
from qedasync.errors import RequestError

__all__ = ["choice", "either", "workload"]

_UNLESS_SAID = 5.0  # seconds

_SECONDS = {"us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)", re.ASCII)


def workload(parsed: Parsed) -> Workload:
    """The workload; refuses writes that were not allowed."""
    reads_only = bool(parsed.names) and not (parsed.has("write") or parsed.has("w"))
    rw = _pattern(parsed, reads_only)
    if parsed.has("S"):
        raise ToolError("-S goes with qemu-img's options, not with fio's")
    for word in parsed.all("i"):
        aio_word(word)
    read_size, write_size = _sizes(either(parsed, "bs", "s") or "4k", rw)
    given_count = either(parsed, "number_ios", "c")
    count = None if given_count is None else integer(given_count, "number of operations")
    return Workload(
        rw=rw,
        block_size=read_size,
        write_size=None if write_size == read_size else write_size,
        depth=_count(parsed, "iodepth", "d", default=64),
        jobs=_count(parsed, "numjobs", default=1),
        runtime=_runtime(parsed.last("runtime"), count),
        number=count,
        read_percent=_count(parsed, "rwmixread", default=70),
        offset=_size(parsed, "offset", "o") or 0,
        size=_size(parsed, "size"),
        seed=_count(parsed, "seed", default=0),
        flush_interval=_count(parsed, "flush-interval", default=0),
        verify=_verifies(parsed),
        fill=_fill(parsed),
    )


def either(parsed: Parsed, word: str, letter: str) -> str | None:
    """The value given last of fio's word and the letter for the same thing."""
    return next((value for key, value in reversed(parsed.given) if key in (word, letter)), None)


def choice(parsed: Parsed, word: str, choices: Sequence[str], default: str) -> str:
    """The value of an option that has only so many."""
    value = parsed.last(word, default) or ""
    if value not in choices:
        raise ToolError(f"--{word} is '{value}'; it must be one of {', '.join(choices)}")
    return value


def _pattern(parsed: Parsed, reads_only: bool) -> Pattern:
    word = choice(parsed, "rw", RW, "randread" if reads_only else "randrw")
    rw = Pattern("rw" if word == "readwrite" else word)
    if rw.writes and reads_only:
        raise ToolError(
            f"--rw {word} would overwrite data in {parsed.names[0]!r};"
            " add --write if that is wanted, or choose randread or read"
        )
    return rw


def _sizes(text: str, rw: Pattern) -> tuple[int, int]:
    """What ``--bs`` says of reads, and of writes or trims; where it says less, the last counts."""
    parts = text.split(",")
    if len(parts) > 3:
        raise ToolError(f"--bs: {text!r} has more sizes than there are kinds")
    sizes = [_number("bs", part or "4k") for part in parts]
    return sizes[0], sizes[-1] if rw.trims else sizes[:2][-1]


def _size(parsed: Parsed, word: str, letter: str = "") -> int | None:
    text = either(parsed, word, letter)
    return None if text is None else _number(word, text)


def _number(word: str, text: str) -> int:
    try:
        return number(text)
    except RequestError as error:
        raise ToolError(f"--{word}: {error}") from error


def _count(parsed: Parsed, word: str, letter: str = "", *, default: int) -> int:
    text = either(parsed, word, letter)
    return default if text is None else integer(text, word)


def _runtime(text: str | None, count: int | None) -> float | None:
    """Seconds; None if only the number of operations limits the run."""
    if text is None:
        return _UNLESS_SAID if count is None else None
    found = _TIME.fullmatch(text.lower())
    if found is None or found[2] not in _SECONDS:
        raise ToolError(f"--runtime: {text!r} is no time; seconds, or with ms, s, m, h or d")
    return float(found[1]) * _SECONDS[found[2]]


def _verifies(parsed: Parsed) -> bool:
    return parsed.has("verify") and choice(parsed, "verify", CHECKS, "") != ""


def _fill(parsed: Parsed) -> int | None:
    text = parsed.last("pattern")
    return None if text is None else integer(text, "pattern byte", high=255)
