"""Creating images: the bytes of qemu-img, all or nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qedasync.create import create
from qedasync.engine.core import Engine, EngineOptions
from qedasync.errors import (
    AccessDenied,
    BackingError,
    BackingRefused,
    HeaderError,
    ImageExists,
    ImageLocked,
    ImageNotFound,
    QEDError,
    RequestError,
    StorageError,
)
from qedasync.events import Event
from qedasync.format.header import MAX_IMAGE_SIZE, Header, validate_header
from qedasync.policy import BackingRequest
from qedasync.storage.base import WriteBuffers
from qedasync.storage.locks import LockRole
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.opener import open_storage
from tests.helpers import qemu

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's locks and devices")

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new.qed"


def header_of(path: Path) -> Header:
    content = path.read_bytes()
    header = Header.parse(content)
    validate_header(header, len(content))
    return header


# ------------------------------------------------------------------------ the bytes of qemu-img


@pytest.mark.parametrize(
    ("cluster_size", "table_size", "size"),
    [
        (65536, 4, 0),
        (65536, 4, 512),
        (65536, 4, 10 * MIB),
        (65536, 4, 64 << 40),
        (4096, 2, 4 << 30),
        (4096, 16, 10 * MIB),
        (65536, 16, MIB + 512),
        (MIB, 2, 1 << 50),
        (MIB, 16, 4 << 60),
        (2 * MIB, 8, MAX_IMAGE_SIZE),
        (4 * MIB, 2, 4 << 60),
        (16 * MIB, 2, 0),
    ],
)
@qemu.needs_qemu
async def test_create_is_byte_for_byte_qemu_img(
    tmp_path: Path, cluster_size: int, table_size: int, size: int
) -> None:
    ours, theirs = tmp_path / "ours.qed", tmp_path / "theirs.qed"
    await create(ours, size, cluster_size=cluster_size, table_size=table_size)
    qemu.create(theirs, size, cluster_size=cluster_size, table_size=table_size)
    assert ours.read_bytes() == theirs.read_bytes()
    qemu.check(ours)


@pytest.mark.parametrize("kind", ["raw", "qed"])
@pytest.mark.parametrize("size", [None, 0, 512, 3 * MIB])
@qemu.needs_qemu
async def test_create_overlay_is_byte_for_byte_qemu_img(
    tmp_path: Path, kind: str, size: int | None
) -> None:
    base = tmp_path / f"base.{kind}"
    qemu.img("create", "-q", "-f", kind, base, str(2 * MIB + 512))
    ours, theirs = tmp_path / "ours.qed", tmp_path / "theirs.qed"
    formats: dict[str, Any] = {"backing_format": kind}
    await create(ours, size, backing_file=base.name, **formats)
    sizes = [] if size is None else [str(size)]
    qemu.img("create", "-q", "-f", "qed", "-b", base.name, "-F", kind, theirs, *sizes)
    assert ours.read_bytes() == theirs.read_bytes()
    assert qemu.img("info", "--backing-chain", ours).stdout.count("image: ") == 2


@pytest.mark.parametrize("length", [255, 4032])
@qemu.needs_qemu
async def test_create_unchecked_name_is_byte_for_byte_qemu_img(tmp_path: Path, length: int) -> None:
    name = "nbd://" + "n" * (length - 6)
    ours, theirs = tmp_path / "ours.qed", tmp_path / "theirs.qed"
    await create(
        ours,
        "1M",
        cluster_size=4096,
        backing_file=name,
        backing_format="raw",
        backing_unchecked=True,
    )
    options = ["-o", "cluster_size=4096", "-b", name, "-F", "raw"]
    qemu.img("create", "-q", "-u", "-f", "qed", *options, theirs, "1M")
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("text", ["10G", "1.5G", "0x1000", "64k", "1000", "1.1k", "1"])
@qemu.needs_qemu
async def test_create_size_text_is_what_qemu_img_makes_of_it(tmp_path: Path, text: str) -> None:
    ours, theirs = tmp_path / "ours.qed", tmp_path / "theirs.qed"
    await create(ours, text)
    qemu.img("create", "-q", "-f", "qed", theirs, text)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(("given", "size"), [(1, 512), (512, 512), (513, 1024), ("1.3k", 1536)])
async def test_create_size_is_rounded_up_to_512(path: Path, given: int | str, size: int) -> None:
    await create(path, given)
    assert header_of(path).image_size == size


@pytest.mark.parametrize(
    "storage",
    ["auto", "aiofiles", *(pytest.param(kind, marks=linux) for kind in ("posix", "blocking"))],
)
async def test_create_each_storage_makes_the_same_file(path: Path, storage: str) -> None:
    await create(path, "10M", cluster_size="4k", table_size=2, storage=storage)
    header = header_of(path)
    assert path.read_bytes() == header.pack().ljust(12288, b"\0")
    assert (header.cluster_size, header.table_size, header.image_size) == (4096, 2, 10 * MIB)


async def test_create_in_a_storage_object_leaves_it_open() -> None:
    storage = MemoryStorage(b"old" * 100000)
    await create("name", 1000, cluster_size=4096, storage=storage)
    assert storage.size == 5 * 4096
    engine = await Engine.open(storage, EngineOptions(writable=True))
    assert engine.image_size == 1024
    await engine.close()


async def test_create_in_storage_that_does_not_fill_with_zeroes_writes_them() -> None:
    storage = GarbageStorage()
    await create(
        "name", MIB, cluster_size=4096, backing_file="b", backing_unchecked=True, storage=storage
    )
    content = storage.snapshot()
    assert content[65:].strip(b"\0") == b""
    assert len(content) == 5 * 4096


class GarbageStorage(MemoryStorage):
    """Grows by rubbish."""

    zero_fills = False

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        old = self.size
        await super().truncate(size, event)
        if size > old:
            await self.write([b"\xee" * (size - old)], old)


async def test_create_new_file_has_the_usual_rights(path: Path) -> None:
    umask = os.umask(0o022)
    try:
        await create(path, MIB)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644


# --------------------------------------------------------------- validated before it is touched

BAD: list[dict[str, Any]] = [
    {"size": None},
    {"size": -1},
    {"size": "ten"},
    {"size": 1.5},
    {"size": True},
    {"size": MAX_IMAGE_SIZE + 512, "cluster_size": 2 * MIB, "table_size": 8},
    {"size": (64 << 40) + 512},
    {"size": 512, "cluster_size": 64 * MIB},
    {"cluster_size": 0},
    {"cluster_size": 2048},
    {"cluster_size": 65537},
    {"cluster_size": 128 * MIB},
    {"cluster_size": (1 << 32) + 4096},
    {"cluster_size": "big"},
    {"table_size": 0},
    {"table_size": 1},
    {"table_size": 3},
    {"table_size": 32},
    {"table_size": (1 << 32) + 2},
    {"backing_file": ""},
    {"backing_file": "a\0b"},
    {"backing_file": "n" * 4033, "cluster_size": 4096, "backing_unchecked": True},
    {"backing_file": "n" * 4096, "backing_unchecked": True},
    {"backing_file": "base.raw", "size": None, "backing_unchecked": True},
    {"backing_file": "base.raw", "backing_format": "qcow2"},
    {"backing_file": "base.raw", "backing_format": ""},
    {"backing_format": "raw"},
    {"backing_file": "new.qed"},
    {"backing_file": "./new.qed", "backing_unchecked": True},
    {"backing_file": "base.raw", "backing": "all"},
    {"storage": "memory"},
    {"storage": "disk"},
]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("options", BAD, ids=lambda options: ",".join(map(str, options)))
async def test_create_bad_argument_is_refused_and_touches_nothing(
    path: Path, options: dict[str, Any], there: bool
) -> None:
    (path.parent / "base.raw").write_bytes(bytes(512))
    if there:
        path.write_bytes(b"precious")
    with pytest.raises(RequestError):
        await create(path, **{"size": MIB, **options})
    assert path.exists() is there
    assert not there or path.read_bytes() == b"precious"


async def test_create_table_size_1_can_be_forced(path: Path) -> None:
    await create(path, MIB, table_size=1, force_table_size_1=True)
    assert header_of(path).table_size == 1


async def test_create_size_of_backing_file_too_large_for_tables_is_refused(path: Path) -> None:
    with (path.parent / "base.raw").open("wb") as file:
        file.truncate((4 << 30) + 512)
    with pytest.raises(RequestError):
        await create(path, backing_file="base.raw", cluster_size=4096, table_size=2)
    assert not path.exists()


# ------------------------------------------------------------------------------- backing files


@pytest.mark.parametrize(("bytes_", "size"), [(0, 0), (1, 512), (1000, 1024), (2 * MIB, 2 * MIB)])
async def test_create_without_size_takes_the_backing_files(
    path: Path, bytes_: int, size: int
) -> None:
    (path.parent / "base.raw").write_bytes(bytes(bytes_))
    await create(path, backing_file="base.raw")
    assert header_of(path).image_size == size


@pytest.mark.parametrize("backing_format", [None, "raw", "qed"])
async def test_create_records_raw_only_when_told(path: Path, backing_format: Any) -> None:
    await create(path.parent / "base.img", MIB)
    await create(path, backing_file="base.img", backing_format=backing_format)
    header = header_of(path)
    assert header.backing_is_raw is (backing_format == "raw")
    file_size = (path.parent / "base.img").stat().st_size
    assert header.image_size == (file_size if backing_format == "raw" else MIB)


async def test_create_name_starts_at_the_images_directory_and_is_kept_as_given(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path.parent / "sub").mkdir()
    (path.parent / "base.raw").write_bytes(bytes(1024))
    (path.parent / "sub" / "base.raw").write_bytes(bytes(2048))
    monkeypatch.chdir(path.parent)
    await create("sub/top.qed", backing_file="./base.raw")
    top = path.parent / "sub" / "top.qed"
    assert header_of(top).image_size == 2048
    assert top.read_bytes()[64:74] == b"./base.raw"


async def test_create_path_objects_are_taken(path: Path) -> None:
    base = path.parent.parent / "base-of-create.raw"
    base.write_bytes(bytes(1024))
    await create(path, backing_file=base)
    assert path.read_bytes()[64:].startswith(str(base).encode())
    base.unlink()


async def test_create_missing_backing_file_touches_nothing(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(BackingError) as caught:
        await create(path, MIB, backing_file="base.raw", backing_format="raw")
    assert caught.value.errno == errno.ENOENT
    assert path.read_bytes() == b"precious"


async def test_create_backing_file_said_to_be_qed_that_is_not_is_refused(path: Path) -> None:
    (path.parent / "base.raw").write_bytes(bytes(4096))
    with pytest.raises(BackingError) as caught:
        await create(path, MIB, backing_file="base.raw", backing_format="qed")
    assert isinstance(caught.value.__cause__, HeaderError)
    assert not path.exists()


@pytest.mark.parametrize("name", ["nbd://host/x", "json:{}"])
async def test_create_url_is_refused_unless_unchecked(path: Path, name: str) -> None:
    with pytest.raises(BackingRefused):
        await create(path, MIB, backing_file=name)
    assert not path.exists()
    await create(path, MIB, backing_file=name, backing_unchecked=True)
    assert path.read_bytes()[64:].startswith(name.encode())


async def test_create_on_a_file_anywhere_is_allowed_but_not_its_own_escapes(
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (tmp_path / "far.raw").write_bytes(bytes(512))
    await create(there / "near.qed", MIB)
    await create(there / "base.qed", backing_file="near.qed")
    await create(there / "escaping.qed", MIB, backing_file="../far.raw")
    asked: list[BackingRequest] = []

    def policy(request: BackingRequest) -> bool:
        asked.append(request)
        return True

    await create(here / "a.qed", backing_file="../there/base.qed")
    with pytest.raises(BackingRefused):
        await create(here / "b.qed", backing_file="../there/escaping.qed")
    assert not (here / "b.qed").exists()
    await create(here / "c.qed", backing_file="../there/escaping.qed", backing=policy)
    assert [request.depth for request in asked] == [2]
    await create(here / "d.qed", backing_file="../there/escaping.qed", backing=False)


@pytest.mark.parametrize("link", ["symbolic", "hard"])
async def test_create_on_itself_by_another_name_is_refused(path: Path, link: str) -> None:
    await create(path, MIB)
    before = path.read_bytes()
    other = path.parent / "other.qed"
    if link == "symbolic":
        other.symlink_to(path)
    else:
        other.hardlink_to(path)
    with pytest.raises(RequestError, match="its own"):
        await create(path, MIB, backing_file="other.qed", backing_unchecked=True)
    assert path.read_bytes() == before


async def test_create_over_a_file_that_the_backing_file_needs_is_refused(path: Path) -> None:
    await create(path, MIB)
    await create(path.parent / "b.qed", backing_file=path.name)
    await create(path.parent / "c.qed", backing_file="b.qed")
    before = path.read_bytes()
    with pytest.raises(BackingError) as caught:
        await create(path, MIB, backing_file="c.qed")
    assert caught.value.errno == errno.ELOOP
    assert path.read_bytes() == before


async def test_create_closes_the_backing_file(path: Path) -> None:
    await create(path.parent / "base.qed", MIB)
    await create(path, backing_file="base.qed")
    storage = await open_storage(path.parent / "base.qed", writable=True, lock=LockRole.READ_WRITE)
    await storage.close()


# ------------------------------------------------------------------------- the file on the host


async def test_create_replaces_an_old_file_of_any_length(path: Path) -> None:
    path.write_bytes(b"\xff" * MIB)
    await create(path, MIB)
    assert path.read_bytes() == header_of(path).pack().ljust(5 * 65536, b"\0")


async def test_create_overwrite_false_keeps_the_file(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(ImageExists) as caught:
        await create(path, MIB, overwrite=False)
    assert caught.value.errno == errno.EEXIST
    assert path.read_bytes() == b"precious"
    await create(path.with_name("other.qed"), MIB, overwrite=False)
    assert header_of(path.with_name("other.qed")).image_size == MIB


async def test_create_in_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        await create(tmp_path / "none" / "new.qed", MIB)


@linux
@pytest.mark.parametrize("storage", ["auto", "aiofiles", pytest.param("blocking", marks=linux)])
@pytest.mark.parametrize("kind", ["pipe", "directory"])
async def test_create_over_what_is_no_file_is_refused(path: Path, kind: str, storage: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(StorageError) as caught:
        await create(path, MIB, storage=storage)
    assert caught.value.errno in (errno.EINVAL, errno.EISDIR)
    assert path.exists()


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
async def test_create_in_readonly_directory_is_denied(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(0o555)
    with pytest.raises(AccessDenied):
        await create(tmp_path / "ro" / "new.qed", MIB)


@linux
@pytest.mark.parametrize("storage", ["auto", "aiofiles", pytest.param("blocking", marks=linux)])
@pytest.mark.parametrize("role", [LockRole.READ_WRITE, LockRole.READ_ONLY, LockRole.CREATE])
async def test_create_over_a_file_in_use_leaves_it_alone(
    path: Path, role: LockRole, storage: str
) -> None:
    path.write_bytes(b"precious")
    holder = await open_storage(path, writable=True, lock=role)
    with pytest.raises(ImageLocked):
        await create(path, MIB, storage=storage)
    assert path.read_bytes() == b"precious"
    await create(path, MIB, lock=False)
    assert header_of(path).image_size == MIB
    await holder.close()


@qemu.needs_qemu
@pytest.mark.parametrize("options", [(), ("-r",)])
async def test_create_over_an_image_that_qemu_holds_leaves_it_alone(
    path: Path, options: tuple[str, ...]
) -> None:
    qemu.create(path, MIB)
    before = path.read_bytes()
    with qemu.hold(path, *options) as holder:
        with pytest.raises(ImageLocked):
            await create(path, 2 * MIB)
        assert path.read_bytes() == before
        holder.leave()
    await create(path, 2 * MIB)
    assert header_of(path).image_size == 2 * MIB


@linux
async def test_create_twice_at_once_makes_one_image(path: Path) -> None:
    results = await asyncio.gather(
        *(create(path, MIB, cluster_size=4096 << n) for n in range(4)), return_exceptions=True
    )
    assert {type(result) for result in results} <= {type(None), ImageLocked}
    assert None in results
    header = header_of(path)
    assert path.stat().st_size == 5 * header.cluster_size


# ------------------------------------------------------------------------------ when it fails


class FailingStorage(MemoryStorage):
    """Fails one call, counted over all of them."""

    def __init__(self, fail_at: int) -> None:
        super().__init__(b"old" * 100)
        self.calls = 0
        self._fail_at = fail_at

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self._fail_at:
            raise StorageError(errno.ENOSPC)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        self._count()
        await super().write(buffers, offset, event)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        self._count()
        await super().flush(event)

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        self._count()
        await super().truncate(size, event)


@pytest.mark.parametrize("fail_at", range(8))
async def test_create_that_fails_leaves_no_image_or_the_whole(fail_at: int) -> None:
    """Seven calls are made: with the last number none fails, so all were tried."""
    storage = FailingStorage(fail_at)
    made = create(
        "name", MIB, cluster_size=4096, backing_file="b", backing_unchecked=True, storage=storage
    )
    if fail_at == 7:
        await made
        return
    with pytest.raises(StorageError):
        await made
    content = storage.snapshot()
    if content.startswith(b"QED\0"):
        assert fail_at == 6  # the last flush
        assert Header.parse(content).cluster_size == 4096


@linux
@pytest.mark.parametrize("there", [False, True])
async def test_create_on_full_disk_removes_only_what_it_made(
    path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        path.write_bytes(b"old")

    def full(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(StorageError) as caught:
        await create(path, MIB)
    assert caught.value.errno == errno.ENOSPC
    assert path.exists() is there
    assert not there or path.read_bytes() == b"old"


@pytest.mark.parametrize("lead", range(0, 60, 3))
@pytest.mark.parametrize("there", [False, True])
async def test_create_cancelled_leaves_the_old_file_the_image_or_nothing_of_one(
    path: Path, there: bool, lead: int
) -> None:
    if there:
        path.write_bytes(b"old")
    making = asyncio.create_task(create(path, MIB, cluster_size=4096))
    for _ in range(lead):
        await asyncio.sleep(0)
    making.cancel()
    try:
        await making
    except asyncio.CancelledError:
        assert path.exists() is there
        assert not there or not path.read_bytes().startswith(b"QED\0") or header_of(path)
    else:
        assert header_of(path).image_size == MIB
    storage = await open_storage(path, writable=True, create=True, lock=LockRole.READ_WRITE)
    await storage.close()


async def test_create_writes_the_header_when_all_else_is_durable() -> None:
    """The old file is gone for good before anything new is written, the header is one sector."""
    log = LoggingStorage()
    name = "x" * 1000
    await create(
        "name", MIB, cluster_size=4096, backing_file=name, backing_unchecked=True, storage=log
    )
    assert log.log == [
        ("truncate", 0),
        "flush",
        ("truncate", 5 * 4096),
        ("write", 64, 1000),
        "flush",
        ("write", 0, 64),
        "flush",
    ]


class LoggingStorage(MemoryStorage):
    """Keeps a list of what is done to it."""

    def __init__(self) -> None:
        super().__init__(b"QED\0" * 100)
        self.log: list[object] = []

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        assert event is Event.CREATE
        self.log.append(("write", offset, sum(map(len, buffers))))
        await super().write(buffers, offset, event)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        self.log.append("flush")
        await super().flush(event)

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        assert event is Event.CREATE
        self.log.append(("truncate", size))
        await super().truncate(size, event)


def test_errors_of_create_have_one_base() -> None:
    for kind in (RequestError, BackingError, ImageLocked, ImageExists, StorageError):
        assert issubclass(kind, QEDError)


@linux
def test_create_with_blocking_storage_needs_no_event_loop(path: Path) -> None:
    with pytest.raises(StopIteration):
        create(path, "1M", storage="blocking").send(None)
    assert header_of(path).image_size == 1 << 20
