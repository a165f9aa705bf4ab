"""A plain coroutine, whose turns the guard counts instructions in.

``python -m benchmarks.yardstick COUNT`` takes so many turns. It imports nothing of ours, and stays
as it is: all that the guard keeps is measured in it.
"""

from __future__ import annotations

import asyncio
import sys

__all__ = ["turns"]


async def turns(count: int) -> int:
    """So many of them; answers in how many places they were."""
    seen: dict[int, tuple[int, int]] = {}
    for number in range(count):
        await _turn(number, seen)
    return len(seen)


async def _turn(number: int, seen: dict[int, tuple[int, int]]) -> None:
    """A call, a little arithmetic, a look-up and a tuple: what a request is made of."""
    place, rest = divmod(number * 17, 64)
    found = seen.get(place & 63)
    seen[place & 63] = (number, rest) if found is None else (found[0] + 1, rest)


if __name__ == "__main__":
    asyncio.run(turns(int(sys.argv[1])))
