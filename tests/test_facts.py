"""What a file says of itself, told without an engine or an event loop."""

from __future__ import annotations

from pathlib import Path

import pytest

import qedasync
from qedasync.facts import DiskFacts
from qedasync.storage.memory import MemoryStorage
from tests.helpers.model import blank


async def test_facts_of_image_are_those_of_the_open_image(tmp_path: Path) -> None:
    path = tmp_path / "top.qed"
    await qedasync.create(
        path,
        "5M",
        cluster_size=8192,
        table_size=2,
        backing_file="base.raw",
        backing_format="raw",
        backing_unchecked=True,
    )
    facts = await DiskFacts.of_image(await qedasync.open_storage(path), str(path))
    async with qedasync.open(path, backing=False) as image:
        assert facts[1:] == (
            image.path,
            image.size,
            image.cluster_size,
            image.features,
            image.backing_file,
            image.backing_format,
        )
    await facts.close()


async def test_facts_of_raw_file_are_those_of_the_open_file() -> None:
    facts = DiskFacts.of_raw(MemoryStorage(bytes(513)), "x")
    async with qedasync.open_raw("x", storage=MemoryStorage(bytes(513))) as raw:
        assert facts[1:3] == (raw.path, raw.size)
    assert facts[3:] == (None, qedasync.Features(0), None, None)


async def test_facts_of_broken_image_raise_what_opening_raises() -> None:
    broken = bytearray(blank(1 << 20, 4096, 1))
    broken[4:8] = (12345).to_bytes(4, "little")  # the cluster size
    with pytest.raises(qedasync.HeaderError) as opening:
        await qedasync.open("x", storage=MemoryStorage(bytes(broken)))
    with pytest.raises(qedasync.HeaderError) as looking:
        await DiskFacts.of_image(MemoryStorage(bytes(broken)), "x")
    assert str(looking.value) == str(opening.value)


async def test_facts_are_closed_with_their_file() -> None:
    storage = MemoryStorage(bytes(512))
    await DiskFacts.of_raw(storage, "x").close()
    with pytest.raises(qedasync.StorageError):
        await storage.read_into([bytearray(1)], 0)
