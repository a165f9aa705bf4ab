"""The header in memory follows the one on disk, never the other way round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qedasync.engine.header_file import HeaderFile
from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.format.header import Header
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.engine.harness import image


async def test_update_writes_the_header_and_leaves_what_follows() -> None:
    content = image() + b"precious"
    storage = MemoryStorage(content[:64] + b"precious" + content[72:])
    file = HeaderFile(storage, Header.parse(content))
    await file.update(replace(file.header, image_size=512))
    assert Header.parse(storage.snapshot()) == file.header
    assert file.header.image_size == 512
    assert storage.snapshot()[64:72] == b"precious"


async def test_update_with_extra_writes_it_behind_the_header_in_one_write() -> None:
    storage = FaultStorage(MemoryStorage(image()))
    file = HeaderFile(storage, Header.parse(image()))
    await file.update(file.header, b"base.raw")
    assert [(c.op, c.event, c.offset, c.length) for c in storage.calls] == [
        ("write", Event.HEADER_UPDATE, 0, 72)
    ]


async def test_update_failing_write_keeps_the_old_header() -> None:
    storage = FaultStorage(MemoryStorage(image()), Fault("error"))
    file = HeaderFile(storage, Header.parse(image()))
    old = file.header
    with pytest.raises(StorageError):
        await file.update(replace(old, image_size=512))
    assert file.header is old
