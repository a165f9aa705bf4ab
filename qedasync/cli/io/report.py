"""What qemu-io prints about a request: sizes, times and bytes, in its very form."""

from __future__ import annotations

import string
import sys
from typing import NamedTuple

__all__ = ["Report", "dump", "size_text"]

_UNITS = (("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10))
_SHORTEST = 1e-9  # seconds; what took no time at all cannot be divided by
_LINE = 16
_SHOWN = bytes(i if chr(i) in string.ascii_letters + string.digits else 46 for i in range(256))


def size_text(value: float) -> str:
    """A size in the largest unit that it fills, with three digits, or none if they are zeroes."""
    for unit, shift in _UNITS:
        if value >= 1 << shift:
            return f"{value / (1 << shift):.3f}".removesuffix(".000") + f" {unit}"
    text = f"{value:f}"
    return (text.partition(".000")[0] if ".000" in text else text) + " bytes"


def _time_text(seconds: float, *, fixed: bool) -> str:
    hundredths = int(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    ending = f"{rest // 100:02}.{rest % 100:02}"
    if fixed or minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02}:{ending}"
    return f"{minutes}:{ending}" if minutes else f"{ending} sec"


class Report(NamedTuple):
    """What was done.

    Attributes:
        what: "read", "wrote" or "discard".
        offset, length: guest bytes.
        seconds: how long it took.
    """

    what: str
    offset: int
    length: int
    seconds: float

    def show(self, *, machine: bool = False) -> None:
        """Print it, for people or for programs."""
        seconds = max(self.seconds, _SHORTEST)
        time = _time_text(self.seconds, fixed=machine)
        pace, ops = self.length / seconds, 1 / seconds
        if machine:
            sys.stdout.write(f"{self.length},1,{time},{pace:.3f},{ops:.3f}\n")
            return
        sys.stdout.write(
            f"{self.what} {self.length}/{self.length} bytes at offset {self.offset}\n"
            f"{size_text(self.length)}, 1 ops; {time} ({size_text(pace)}/sec and"
            f" {ops:.4f} ops/sec)\n"
        )


def dump(data: bytes | bytearray | memoryview, offset: int) -> None:
    """Print bytes in hexadecimal, a line for 16 of them.

    Args:
        offset: of the first one, as each line begins with it.
    """
    for start in range(0, len(data), _LINE):
        line = bytes(data[start : start + _LINE])
        text = line.translate(_SHOWN).decode()
        sys.stdout.write(f"{offset + start:08x}:  {line.hex(' ')}  {text}\n")
