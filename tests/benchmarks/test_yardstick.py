"""The yardstick does its work."""

from __future__ import annotations

from benchmarks.yardstick import turns


async def test_turns_are_in_so_many_places() -> None:
    assert await turns(0) == 0
    assert await turns(1000) == 64
