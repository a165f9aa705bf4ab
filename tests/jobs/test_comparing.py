"""compare: the first difference, wherever and between whatever it is; beside qemu-img."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync import MemoryStorage
from qedasync.jobs.comparing import Unreadable
from qedasync.storage.faults import Fault, FaultStorage
from tests.helpers import qemu
from tests.jobs.disks import KIB, MIB, Lender, chain, patchwork, write_sparse

SIZE = 3 * MIB
CONTENT = patchwork(SIZE, 12)


async def make(folder: Path, name: str, content: bytes) -> Path:
    """A raw file, or an image if the name says so."""
    path = folder / name
    write_sparse(folder / "new.raw", content)
    if name.endswith(".raw"):
        os.replace(folder / "new.raw", path)
    else:
        await qedasync.convert(folder / "new.raw", path)
    return path


@pytest.mark.parametrize("first", ["a.raw", "a.qed"])
@pytest.mark.parametrize("second", ["b.raw", "b.qed"])
async def test_compare_equal_disks_are_identical(tmp_path: Path, first: str, second: str) -> None:
    one = await make(tmp_path, first, CONTENT)
    two = await make(tmp_path, second, CONTENT)
    result = await qedasync.compare(one, two)
    assert result.identical
    assert result.offset is None
    assert not result.size_mismatch
    assert result.reason == ""


@pytest.mark.parametrize("pos", [0, 1, 4095, 65536, 300_001, MIB, SIZE - 1])
@pytest.mark.parametrize("second", ["b.raw", "b.qed"])
async def test_compare_finds_the_first_byte_that_differs(
    tmp_path: Path, pos: int, second: str
) -> None:
    one = await make(tmp_path, "a.raw", CONTENT)
    changed = bytearray(CONTENT)
    changed[pos] ^= 255
    changed[pos + 5000 :: 9999] = bytes(len(changed[pos + 5000 :: 9999]))
    two = await make(tmp_path, second, bytes(changed))
    for pair in ((one, two), (two, one)):
        result = await qedasync.compare(*pair)
        assert (result.identical, result.offset, result.reason) == (False, pos, "content")


@pytest.mark.parametrize("pos", [0, 77, 700 * KIB, SIZE - 1])
@pytest.mark.parametrize("inline", [True, False])
async def test_compare_disks_without_files_finds_the_first_byte(pos: int, inline: bool) -> None:
    changed = bytearray(CONTENT)
    changed[pos] ^= 1
    async with (
        qedasync.open_raw("a", storage=MemoryStorage(CONTENT, inline=inline)) as one,
        qedasync.open_raw("b", storage=MemoryStorage(bytes(changed), inline=inline)) as two,
    ):
        assert (await qedasync.compare(one, two)).offset == pos
        assert (await qedasync.compare(one, one)).identical
        assert not one.closed


@pytest.mark.parametrize("good", range(0, 12, 3))
async def test_compare_reads_again_what_threads_failed_to_read(tmp_path: Path, good: int) -> None:
    path = await make(tmp_path, "a.raw", CONTENT)
    changed = bytearray(CONTENT)
    changed[2 * MIB + 5] ^= 1
    other = await make(tmp_path, "b.raw", bytes(changed))
    async with qedasync.open_raw(path) as one, qedasync.open_raw(other) as two:
        assert (await qedasync.compare(Lender(one, good), two)).offset == 2 * MIB + 5
        assert (await qedasync.compare(one, Lender(one, good))).identical


@qemu.needs_qemu
async def test_compare_of_a_chain_with_its_flat_copy_is_identical(tmp_path: Path) -> None:
    top = await chain(tmp_path)
    qemu.convert(top, "qed", tmp_path / "flat.raw", "raw")
    assert (await qedasync.compare(top, tmp_path / "flat.raw")).identical
    with (tmp_path / "flat.raw").open("r+b") as file:
        file.seek(654_321)
        old = file.read(1)
        file.seek(654_321)
        file.write(bytes([old[0] ^ 1]))
    assert (await qedasync.compare(top, tmp_path / "flat.raw")).offset == 654_321


# ------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("tail", "strict", "expected"),
    [
        (bytes(8192), False, (True, None, "")),
        (bytes(8192), True, (False, None, "size")),
        (bytes(5000) + b"x" + bytes(3191), False, (False, SIZE + 5000, "content")),
    ],
)
async def test_compare_different_sizes(
    tmp_path: Path, tail: bytes, strict: bool, expected: tuple[Any, ...]
) -> None:
    (tmp_path / "a.raw").write_bytes(CONTENT)
    (tmp_path / "b.raw").write_bytes(CONTENT + tail)
    for pair in (("a.raw", "b.raw"), ("b.raw", "a.raw")):
        result = await qedasync.compare(*(tmp_path / name for name in pair), strict=strict)
        assert (result.identical, result.offset, result.reason) == expected
        assert result.size_mismatch


async def test_compare_strict_minds_what_is_allocated(tmp_path: Path) -> None:
    for name in ("a", "b"):
        await qedasync.create(tmp_path / name, MIB)
        async with qedasync.open(tmp_path / name, "r+") as image:
            await image.pwrite(b"x" * 65536, 65536)
            if name == "b":
                await image.write_zeroes(65536, 512 * KIB)
    a, b = tmp_path / "a", tmp_path / "b"
    assert (await qedasync.compare(a, b)).identical
    assert (await qedasync.compare(a, a, strict=True)).identical
    result = await qedasync.compare(a, b, strict=True)
    assert (result.identical, result.offset, result.reason) == (False, 512 * KIB, "allocation")


async def test_compare_empty_disks_are_identical(tmp_path: Path) -> None:
    (tmp_path / "a.raw").touch()
    await qedasync.create(tmp_path / "b.qed", 0)
    assert (await qedasync.compare(tmp_path / "a.raw", tmp_path / "b.qed")).identical


# --------------------------------------------------------------------- failures


@pytest.mark.parametrize("which", [0, 1])
async def test_compare_part_that_cannot_be_read_says_whose_and_where(which: int) -> None:
    bad = FaultStorage(
        MemoryStorage(os.urandom(SIZE)), Fault("error", op="read", call=3, once=False)
    )
    async with (
        qedasync.open_raw("a", storage=bad) as one,
        qedasync.open_raw("b", storage=MemoryStorage(await _read(bad))) as two,
    ):
        pair = (one, two) if which == 0 else (two, one)
        with pytest.raises(Unreadable) as caught:
            await qedasync.compare(*pair)
        error = caught.value
        assert (error.which, error.errno, error.mapping) == (which, errno.EIO, False)
        assert 0 < error.offset < SIZE


async def _read(storage: FaultStorage) -> bytes:
    data = bytearray(storage.size)
    await storage.inner.read_into([data], 0)
    return bytes(data)


async def test_compare_damaged_table_says_that_the_map_is_at_fault(tmp_path: Path) -> None:
    path = await make(tmp_path, "a.qed", b"x" * MIB)
    content = bytearray(path.read_bytes())
    content[65536:65544] = (4097).to_bytes(8, "little")
    path.write_bytes(content)
    (tmp_path / "b.raw").write_bytes(b"x" * MIB)
    with pytest.raises(Unreadable) as caught:
        await qedasync.compare(tmp_path / "b.raw", path)
    assert (caught.value.which, caught.value.mapping) == (1, True)


async def test_compare_progress_goes_up_to_the_size(tmp_path: Path) -> None:
    one = await make(tmp_path, "a.raw", CONTENT)
    two = await make(tmp_path, "b.qed", CONTENT)
    told: list[tuple[int, int]] = []
    await qedasync.compare(one, two, progress=lambda done, of: told.append((done, of)))
    assert told == sorted(told)
    assert told[0] == (0, SIZE)
    assert told[-1] == (SIZE, SIZE)
