"""The measuring devices of these tests see what they are there to see."""

from __future__ import annotations

from pathlib import Path

import pytest

from qedasync.errors import StorageError
from qedasync.storage.base import Write
from qedasync.storage.memory import MemoryStorage
from tests.hostile.bases import Base, furnish, make_bases
from tests.hostile.cost import cheap
from tests.hostile.meter import Meter
from tests.hostile.mutants import FAMILIES, hostile
from tests.hostile.watch import outside, watch
from tests.quirks.images import MIB


def test_watch_sees_files_outside_and_only_while_it_looks(tmp_path: Path) -> None:
    images = furnish(tmp_path)
    with watch().looking() as seen:
        (images / "base.raw").read_bytes()
        (images / "near.raw").read_bytes()
        assert outside(seen, images) == []
        (images / "link.raw").read_bytes()
        (images / "below" / "base.raw").read_bytes()
    (tmp_path / "base.raw").read_bytes()
    assert outside(seen, images) == [str(tmp_path / "base.raw"), str(images / "below/base.raw")]


def test_cheap_what_costs_more_fails() -> None:
    with cheap(MIB):
        bytes(MIB // 2)
    with pytest.raises(AssertionError), cheap(MIB):
        bytes(2 * MIB)


async def test_meter_counts_and_the_disk_is_full_at_last() -> None:
    meter = Meter(MemoryStorage(bytes(100)), room=1000)
    assert meter.try_read_into([bytearray(10), bytearray(20)], 0)
    await meter.read_into([bytearray(5)], 0)
    await meter.write([b"12345"], 0)
    await meter.truncate(200)
    assert (meter.calls, meter.bytes_read, meter.longest) == (4, 35, 30)
    assert (meter.changes, meter.bytes_written) == (2, 5)
    with meter.only(1):
        assert meter.try_read_into([bytearray(1)], 0)
        assert not meter.try_read_into([bytearray(1)], 0)
        with pytest.raises(StorageError):
            await meter.read_into([bytearray(1)], 0)
    await meter.read_into([bytearray(1)], 0)
    with pytest.raises(StorageError):
        await meter.write_many([Write(0, [bytes(1000)], 1000, None)])  # type: ignore[arg-type]


async def test_hostile_images_are_the_same_every_time_and_differ_from_sound_ones(
    tmp_path: Path,
) -> None:
    images = furnish(tmp_path)
    bases = await make_bases(images)
    sound = {_digest(base) for base in bases}
    changed = 0
    for number in range(4 * len(FAMILIES)):
        one, again = hostile(number, bases), hostile(number, bases)
        assert one.what == again.what
        mutant = Base("", one.content, bases[0].header, ())
        assert _digest(mutant) == _digest(Base("", again.content, bases[0].header, ()))
        changed += _digest(mutant) not in sound
    assert changed > 3 * len(FAMILIES)


def _digest(base: Base) -> int:
    """Of the size, and of what is not a hole."""
    found = [base.content.size]
    offset = base.content.next_data(0)
    while offset < base.content.size:
        piece = bytearray(min(1 << 16, base.content.size - offset))
        base.content.read_into(piece, offset)
        found.append(hash((offset, bytes(piece))))
        offset = base.content.next_data(offset + len(piece))
    return hash(tuple(found))
