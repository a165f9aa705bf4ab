"""The backing file's name: where it goes, what is refused, and no crash that mixes two names."""

from __future__ import annotations

from dataclasses import replace
from errno import EIO, ENAMETOOLONG, ENOSPC, ENOTSUP
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qedasync
from qedasync.chain.name import plan_name
from qedasync.errors import ImageFailed, ReadOnly, RequestError, StorageError
from qedasync.events import Event
from qedasync.format.header import Features, new_header
from qedasync.image import Image, open_image
from qedasync.storage.base import Storage
from qedasync.storage.crash import crash_points, crash_states
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.recorder import RecorderStorage
from tests.chain.stack import CLUSTER, header_of, image_file
from tests.helpers import qemu

SIZE = 16 * CLUSTER
LENGTHS = (1, 10, 448, 449, 960, 1500, 2000)


def name_of(length: int, letter: str = "n") -> str:
    return (letter * length)[:length]


async def opened(storage: Storage) -> Image:
    return await open_image("d", "r+", storage=storage, backing=False, need_check_timeout=0)


def test_plan_name_that_fits_goes_right_behind_the_header_as_qemu_puts_it() -> None:
    header, data = plan_name(new_header(SIZE, CLUSTER, 2), "base.raw", True)
    assert header == new_header(SIZE, CLUSTER, 2, "base.raw", True)
    assert data == b"base.raw"


def test_plan_name_none_keeps_the_place_and_drops_the_bits() -> None:
    old = new_header(SIZE, CLUSTER, 2, "base.raw", True).with_features(set=Features.NEED_CHECK)
    header, data = plan_name(old, None, False)
    assert (header.features, data) == (Features.NEED_CHECK, b"")
    assert (header.backing_filename_offset, header.backing_filename_size) == (64, 0)


@given(
    st.integers(1, 4095),
    st.integers(1, 4095),
    st.integers(0, 4096),
    st.sampled_from([4096, 8192, 65536]),
)
def test_plan_name_never_lies_on_the_old_one_beyond_the_first_sector(
    length: int, old_length: int, old_offset: int, cluster_size: int
) -> None:
    old_length = min(old_length, cluster_size - old_offset)
    old = replace(
        new_header(SIZE, cluster_size, 2, "x"),
        backing_filename_offset=old_offset,
        backing_filename_size=old_length,
    )
    try:
        header, data = plan_name(old, name_of(length), False)
    except RequestError as error:
        assert error.errno == ENOSPC  # noqa: PT017
        assert 2 * length + old_length + 64 > cluster_size, "it fits before the old one, or behind"
        return
    start, stop = header.backing_filename_offset, header.backing_filename_offset + len(data)
    assert 64 <= start
    assert stop <= cluster_size
    touched = set(range(max(512, start), stop))
    assert touched.isdisjoint(range(old_offset, old_offset + old_length))


@pytest.mark.parametrize(
    ("length", "number"), [(4033, ENOSPC), (4095, ENOSPC), (4096, ENAMETOOLONG)]
)
def test_plan_name_without_room_is_refused_with_numbers(length: int, number: int) -> None:
    with pytest.raises(RequestError) as caught:
        plan_name(new_header(SIZE, CLUSTER, 2), name_of(length), False)
    assert caught.value.errno == number
    assert caught.value.length == length


@pytest.mark.parametrize("name", ["new.raw", None])
async def test_change_backing_file_with_unknown_compat_bits_only_removes(name: str | None) -> None:
    header = replace(new_header(SIZE, CLUSTER, 2, "old"), compat_features=1 << 40)
    content = SparseBytes(header.pack() + b"old")
    content.resize(3 * CLUSTER)
    async with await opened(MemoryStorage(content)) as disk:
        if name is None:
            await disk.change_backing_file(None)
        else:
            with pytest.raises(RequestError) as caught:
                await disk.change_backing_file(name)
            assert caught.value.errno == ENOTSUP
    assert header_of(content)[1] == ("old" if name else None)
    assert header_of(content)[0].compat_features == 1 << 40


async def test_change_backing_file_keeps_what_is_read_until_the_next_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * SIZE)
    (tmp_path / "b").write_bytes(b"b" * SIZE)
    path = tmp_path / "disk.qed"
    await qedasync.create(path, backing_file="a", backing_format="raw")
    async with qedasync.open(path, "r+") as disk:
        await disk.change_backing_file("b", "raw")
        assert disk.backing_file == "b"
        assert disk.backing_format == "raw"
        assert await disk.pread(1, 0) == b"a"
    async with qedasync.open(path) as disk:
        assert await disk.pread(1, 0) == b"b"


async def test_change_backing_file_of_a_read_only_image_is_refused() -> None:
    storage = MemoryStorage(image_file(SIZE, CLUSTER))
    async with open_image("d", storage=storage) as disk:
        with pytest.raises(ReadOnly):
            await disk.change_backing_file("x")


async def test_change_backing_file_with_a_nul_in_the_name_is_refused() -> None:
    async with await opened(MemoryStorage(image_file(SIZE, CLUSTER))) as disk:
        with pytest.raises(RequestError):
            await disk.change_backing_file("a\0b")


@pytest.mark.parametrize(("old", "new"), [*product(LENGTHS, LENGTHS), (10, 0), (960, 0), (0, 960)])
async def test_change_backing_file_crashed_anywhere_leaves_one_name_or_the_other(
    old: int, new: int
) -> None:
    names = {name_of(old, "o") or None, name_of(new, "n") or None}
    content = image_file(SIZE, CLUSTER, name_of(old, "o"))
    recorder = RecorderStorage(MemoryStorage(content))
    async with await opened(recorder) as disk:
        await disk.change_backing_file(name_of(new, "n") or None, "raw")
        returned = recorder.mark().begin
    assert header_of(content)[1] == (name_of(new, "n") or None)
    found = set()
    for point in crash_points(recorder.log, recorder.base):
        for state in crash_states(point, Random(1), 12):
            name = header_of(state.content())[1]
            assert name in names, state
            if point.cut > returned:
                assert name == (name_of(new, "n") or None), f"not durable on return: {state}"
            found.add(name)
    assert found == names


@pytest.mark.parametrize("old", [10, 960])
@pytest.mark.parametrize("new", [10, 960])
@pytest.mark.parametrize("action", ["error", "error-after", "short", "torn"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
async def test_change_backing_file_that_fails_leaves_a_whole_name(
    old: int, new: int, action: str, call: int
) -> None:
    content = image_file(SIZE, CLUSTER, name_of(old, "o"))
    storage = FaultStorage(MemoryStorage(content))
    disk = await opened(storage)
    storage.add(Fault(action, op="write", call=call))  # type: ignore[arg-type]
    try:
        await disk.change_backing_file(name_of(new))
    except StorageError as error:
        assert error.errno == EIO  # noqa: PT017
        assert header_of(content)[1] == name_of(old, "o")
        assert disk.backing_file == name_of(old, "o")
        await disk.change_backing_file(name_of(new))
    assert header_of(content)[1] == name_of(new)
    await disk.close()


async def test_change_backing_file_that_cannot_be_undone_fails_the_image() -> None:
    storage = FaultStorage(MemoryStorage(image_file(SIZE, CLUSTER, "old")))
    disk = await opened(storage)
    storage.add(Fault("error", event=Event.HEADER_UPDATE, op="write", once=False))
    with pytest.raises(StorageError):
        await disk.change_backing_file("new")
    with pytest.raises(ImageFailed):
        await disk.pwrite(b"x", 0)
    with pytest.raises(ImageFailed):
        await disk.close()


@qemu.needs_qemu
async def test_change_backing_file_is_byte_for_byte_what_qemu_writes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.qed", tmp_path / "theirs.qed"
    for path in (ours, theirs):
        qemu.create(path, SIZE, cluster_size=CLUSTER, table_size=2)
    for name, kind in (("sub/base.raw", "raw"), ("b.qed", "qed"), (None, None)):
        async with open_image(ours, "r+", backing=False) as disk:
            await disk.change_backing_file(name, kind)  # type: ignore[arg-type]
        more = ("-F", kind) if kind else ()
        qemu.img("rebase", "-u", "-f", "qed", "-b", name or "", *more, theirs)
        assert ours.read_bytes() == theirs.read_bytes(), name
        info = qemu.img("info", "--output=json", ours).stdout
        assert (f'"backing-filename": "{name}"' in info) is (name is not None)


@qemu.needs_qemu_7_2
async def test_name_of_4096_bytes_is_refused_where_qemu_makes_an_image_nobody_opens(
    tmp_path: Path,
) -> None:
    """Dossier Q16."""
    path = tmp_path / "disk.qed"
    qemu.create(path, SIZE)
    async with open_image(path, "r+", backing=False) as disk:
        with pytest.raises(RequestError):
            await disk.change_backing_file(name_of(4096))
        await disk.change_backing_file(name_of(4095))
    qemu.img("info", path)
    qemu.img("rebase", "-u", "-f", "qed", "-F", "raw", "-b", name_of(4096), path)
    qemu.img("info", path, status=1)
