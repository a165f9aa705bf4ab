"""Backing files: what the gate lets through, and what a chain of them reads as."""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import os
import socket
import stat
import sys
from array import array
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qedasync.backing import open_backing
from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.extents import Extent, ExtentKind
from qedasync.engine.sources import RawSource
from qedasync.errors import (
    BackingError,
    BackingRefused,
    CorruptTable,
    HeaderError,
    ImageLocked,
    RequestError,
    StorageError,
)
from qedasync.format.header import encode_backing_name, new_header
from qedasync.policy import BackingPolicy, BackingRequest, check_policy, local_path
from qedasync.storage.base import Storage
from qedasync.storage.locks import LockRole
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.opener import open_storage
from tests.helpers import qemu

CLUSTER, TABLE = 4096, 2
SIZE = 16 * CLUSTER
L1, L2, DATA = CLUSTER, 3 * CLUSTER, 5 * CLUSTER

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's locks and devices")


def image(
    name: str | None = None,
    *,
    raw: bool = False,
    size: int = SIZE,
    clusters: Mapping[int, bytes | None] | None = None,
) -> bytes:
    """An image with some of its first 1024 clusters: filled with a byte, or ZERO (None)."""
    header = new_header(size, CLUSTER, TABLE, name, raw)
    head = header.pack() + (encode_backing_name(name) if name else b"")
    l1, l2, data = array("Q", bytes(2 * CLUSTER)), array("Q", bytes(2 * CLUSTER)), b""
    for index, fill in (clusters or {}).items():
        l1[0] = L2
        l2[index] = 1 if fill is None else DATA + len(data)
        data += b"" if fill is None else fill * CLUSTER
    return head.ljust(CLUSTER, b"\0") + l1.tobytes() + l2.tobytes() + data


@asynccontextmanager
async def opened(
    path: Path | str,
    policy: BackingPolicy = "auto",
    *,
    l2_cache_bytes: int = 1 << 20,
    lock: bool = True,
    opener: Any = open_storage,
) -> AsyncIterator[Engine]:
    """The image with its backing file; closed at the end."""
    storage = await open_storage(path, lock=LockRole.READ_ONLY if lock else None)
    try:
        engine = await Engine.open(storage, EngineOptions(), str(path))
    except BaseException:
        await storage.close()
        raise
    try:
        source = await open_backing(
            engine,
            str(path),
            policy,
            open_storage=opener,
            l2_cache_bytes=l2_cache_bytes,
            lock=lock,
        )
        engine.attach(source)
        yield engine
    finally:
        await engine.close()


async def fails(path: Path, policy: BackingPolicy = "auto") -> BackingError:
    """The error from opening the image's backing file; it names image and file."""
    with pytest.raises(BackingError) as caught:
        async with opened(path, policy):
            pass
    assert repr(caught.value.name) in str(caught.value)
    return caught.value


async def refused(path: Path, policy: BackingPolicy = "auto") -> BackingRefused:
    error = await fails(path, policy)
    assert isinstance(error, BackingRefused)
    assert isinstance(error, PermissionError)
    assert error.errno == errno.EPERM
    return error


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Where the overlay goes, beside its base."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images" / "top.qed"


# ------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("base.raw", "dir/base.raw"),
        ("sub/base.raw", "dir/sub/base.raw"),
        ("../base.raw", "dir/../base.raw"),
        ("/abs/base.raw", "/abs/base.raw"),
        ("./a:b", "dir/./a:b"),
        ("/a:b", "/a:b"),
        ("file:base.raw", "base.raw"),
        ("file:/abs/base.raw", "/abs/base.raw"),
        ("file:a:b", "a:b"),
        ("file:", ""),
    ],
)
def test_local_path_of_plain_name_is_as_qemu_reads_it(name: str, path: str) -> None:
    assert local_path(name, "dir/top.qed") == path


URLS = [
    "nbd://127.0.0.1/x",
    "nbd:unix:/tmp/s",
    "http://example.org/base.raw",
    'json:{"driver":"file","filename":"/etc/passwd"}',
    "json:{}",
    "fat:rw:/tmp",
    "host_device:/dev/sda",
    "FILE:base.raw",
    "a b:base.raw",
    ":base.raw",
]


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize("policy", ["auto", "any", True, lambda request: True])
async def test_url_is_refused_whatever_the_policy(
    top: Path, name: str, policy: BackingPolicy
) -> None:
    top.write_bytes(image(name))
    (top.parent / "base.raw").write_bytes(bytes(512))
    error = await refused(top, policy)
    assert error.name == name
    assert repr(str(top)) in str(error)


async def test_url_is_no_matter_without_backing(top: Path) -> None:
    top.write_bytes(image(URLS[0]))
    async with opened(top, policy=False) as engine:
        assert engine.backing is None
        assert await engine.read(SIZE, 0) == bytes(SIZE)


async def test_name_with_nul_ends_there_as_with_qemu(top: Path) -> None:
    content = bytearray(image("base.raw/evil"))
    content[64 + len("base.raw")] = 0
    top.write_bytes(content)
    (top.parent / "base.raw").write_bytes(b"x" * 512)
    async with opened(top) as engine:
        assert await engine.read(2, 511) == b"x\0"


@pytest.mark.parametrize("length", [256, 4032])
async def test_name_too_long_for_the_host_is_a_backing_error(top: Path, length: int) -> None:
    top.write_bytes(image("n" * length))
    error = await fails(top)
    assert error.errno == errno.ENAMETOOLONG
    assert isinstance(error.__cause__, OSError)


async def test_name_of_4095_bytes_is_opened(top: Path) -> None:
    """With clusters of 8 KiB there is room for the longest name there is."""
    name = "./" * 2043 + "base.raw"
    name = "/" * (4095 - len(name)) + str(top.parent / "base.raw")
    name = name.rjust(4095, "/")
    top.write_bytes(big_cluster_image(name))
    (top.parent / "base.raw").write_bytes(b"x" * 512)
    assert len(name) == 4095
    async with opened(top) as engine:
        assert await engine.read(1, 0) == b"x"


def big_cluster_image(name: str) -> bytes:
    header = new_header(SIZE, 8192, 2, name)
    return (header.pack() + encode_backing_name(name)).ljust(3 * 8192, b"\0")


async def test_name_of_4096_bytes_is_no_image() -> None:
    storage = MemoryStorage(big_cluster_image("n" * 4096))
    with pytest.raises(HeaderError, match="backing_filename_size"):
        await Engine.open(storage, EngineOptions(), "top.qed")


@linux
async def test_name_that_is_not_text_is_found(top: Path) -> None:
    name = os.fsdecode(b"base-\xff.raw")
    top.write_bytes(image(name))
    error = await fails(top)
    assert error.errno == errno.ENOENT
    str(error).encode()  # can be printed
    (top.parent / name).write_bytes(b"x" * 512)
    async with opened(top) as engine:
        assert await engine.read(1, 0) == b"x"


@qemu.needs_qemu
async def test_file_protocol_starts_at_the_working_directory_as_with_qemu(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top.write_bytes(image("file:base.raw", raw=True))
    monkeypatch.chdir(top.parent.parent)
    (top.parent / "base.raw").write_bytes(b"x" * 512)
    assert (await fails(top, "any")).errno == errno.ENOENT
    qemu.io(top, "read -P 120 0 512", options=("-f", "qed", "-r"), status=1)
    monkeypatch.chdir(top.parent)
    qemu.io(top, "read -P 120 0 512", options=("-f", "qed", "-r"))
    async with opened(top) as engine:
        assert await engine.read(512, 0) == b"x" * 512


# ------------------------------------------------------------------------------------ policies


@pytest.mark.parametrize("policy", ["auto", True, "any", lambda request: True])
async def test_file_in_the_images_directory_is_opened(top: Path, policy: BackingPolicy) -> None:
    top.write_bytes(image("base.raw"))
    (top.parent / "base.raw").write_bytes(b"x" * SIZE)
    async with opened(top, policy) as engine:
        assert await engine.read(SIZE, 0) == b"x" * SIZE


@pytest.mark.parametrize(
    "name", ["../base.raw", "sub/base.raw", "{absolute}", "sub/../../base.raw"]
)
async def test_file_elsewhere_needs_a_wider_policy(top: Path, name: str) -> None:
    (top.parent / "sub").mkdir()
    for directory in (top.parent / "sub", top.parent.parent):
        (directory / "base.raw").write_bytes(b"x" * SIZE)
    name = name.format(absolute=top.parent.parent / "base.raw")
    top.write_bytes(image(name))
    for policy in ("auto", True):
        error = await refused(top, policy)
        assert 'backing="any"' in str(error)
        assert repr(str(top)) in str(error)
    async with opened(top, "any") as engine:
        assert await engine.read(1, 0) == b"x"


async def test_absolute_name_in_the_images_directory_is_opened(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = top.parent / "base.raw"
    base.write_bytes(b"x" * SIZE)
    top.write_bytes(image(str(base)))
    monkeypatch.chdir(top.parent)
    async with opened("top.qed") as engine:
        assert await engine.read(1, 0) == b"x"


async def test_missing_file_elsewhere_is_refused_and_not_looked_for(top: Path) -> None:
    top.write_bytes(image("/no/such/file"))
    await refused(top)
    assert (await fails(top, "any")).errno == errno.ENOENT


@pytest.mark.parametrize("what", ["file", "directory"])
async def test_symbolic_link_out_of_the_directory_is_refused(top: Path, what: str) -> None:
    secret = top.parent.parent / "secret"
    secret.mkdir()
    (secret / "base.raw").write_bytes(b"s" * SIZE)
    if what == "file":
        (top.parent / "base.raw").symlink_to(secret / "base.raw")
        top.write_bytes(image("base.raw"))
    else:
        (top.parent / "link").symlink_to(secret)
        top.write_bytes(image("link/base.raw"))
    assert repr(str(secret / "base.raw")) in str(await refused(top))
    async with opened(top, "any") as engine:
        assert await engine.read(1, 0) == b"s"


async def test_symbolic_link_inside_the_directory_is_followed(top: Path) -> None:
    (top.parent / "real.raw").write_bytes(b"x" * SIZE)
    (top.parent / "base.raw").symlink_to("real.raw")
    top.write_bytes(image("base.raw"))
    async with opened(top) as engine:
        assert await engine.read(1, 0) == b"x"


async def test_file_that_was_admitted_is_opened_not_the_link_to_it(top: Path) -> None:
    """The link may lead elsewhere by then."""
    (top.parent / "real.raw").write_bytes(b"x" * SIZE)
    (top.parent / "base.raw").symlink_to("real.raw")
    top.write_bytes(image("base.raw"))
    paths: list[str] = []

    async def opener(path: str, **options: Any) -> Storage:
        paths.append(path)
        return await open_storage(path, **options)

    async with opened(top, opener=opener):
        assert set(paths) == {str(top.parent / "real.raw")}


async def test_image_behind_a_symbolic_link_has_the_links_names_and_its_own_directory(
    top: Path,
) -> None:
    """As with QEMU a name starts where the link is; the policy asks where the image is."""
    top.write_bytes(image("base.raw"))
    (top.parent / "base.raw").write_bytes(b"x" * SIZE)
    link = top.parent.parent / "link.qed"
    link.symlink_to(top)
    assert str(link.parent / "base.raw") in str(await refused(link))
    assert (await fails(link, "any")).errno == errno.ENOENT


async def test_policy_function_is_asked_for_each_file_with_the_facts(top: Path) -> None:
    directory = top.parent.parent
    top.write_bytes(image("../middle.qed"))
    (directory / "middle.qed").write_bytes(image("link.raw", raw=True))
    (directory / "base.raw").write_bytes(b"x" * SIZE)
    (directory / "link.raw").symlink_to("base.raw")
    asked: list[BackingRequest] = []

    def policy(request: BackingRequest) -> bool:
        asked.append(request)
        return True

    async with opened(top, policy) as engine:
        assert await engine.read(1, 0) == b"x"
    middle = f"{top.parent}/../middle.qed"
    assert asked == [
        BackingRequest("../middle.qed", str(directory / "middle.qed"), str(top), 1, None),
        BackingRequest("link.raw", str(directory / "base.raw"), middle, 2, "raw"),
    ]


@pytest.mark.parametrize("depth", [1, 2])
async def test_policy_function_that_says_no_is_obeyed(top: Path, depth: int) -> None:
    top.write_bytes(image("middle.qed"))
    (top.parent / "middle.qed").write_bytes(image("base.raw"))
    (top.parent / "base.raw").write_bytes(b"x" * SIZE)
    error = await refused(top, lambda request: request.depth < depth)
    assert error.name == ("middle.qed" if depth == 1 else "base.raw")


async def test_policy_function_that_raises_is_heard(top: Path) -> None:
    top.write_bytes(image("base.raw"))
    (top.parent / "base.raw").write_bytes(b"x" * SIZE)

    def policy(request: BackingRequest) -> bool:
        raise LookupError(request.name)

    with pytest.raises(LookupError, match=r"base\.raw"):
        async with opened(top, policy):
            pass


@pytest.mark.parametrize("policy", ["", "none", "AUTO", None, 1, ["auto"]])
async def test_other_policy_is_refused_even_without_a_backing_file(top: Path, policy: Any) -> None:
    with pytest.raises(RequestError, match="'auto', 'any'"):
        check_policy(policy)
    top.write_bytes(image())
    with pytest.raises(RequestError):
        async with opened(top, policy):
            pass


async def test_image_without_backing_file_has_none(top: Path) -> None:
    top.write_bytes(image())
    async with opened(top) as engine:
        assert engine.backing is None


# ------------------------------------------------------------------------- what is no base


async def test_missing_file_is_a_backing_error_with_its_cause(top: Path) -> None:
    top.write_bytes(image("base.raw"))
    error = await fails(top)
    assert error.errno == errno.ENOENT
    assert isinstance(error.__cause__, FileNotFoundError)
    assert "No such file" in str(error)
    assert repr(str(top)) in str(error)
    assert repr(str(top.parent / "base.raw")) in str(error)


@linux
@pytest.mark.parametrize("policy", ["auto", "any", lambda request: True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "directory"])
async def test_special_file_is_refused_at_once(
    top: Path, kind: str, policy: BackingPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    top.write_bytes(image("base.raw"))
    monkeypatch.chdir(top.parent)  # a socket's path must be short
    if kind == "pipe":
        os.mkfifo("base.raw")
    elif kind == "directory":
        os.mkdir("base.raw")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("base.raw")
    error = await fails(top, policy)
    assert error.errno == (errno.EISDIR if kind == "directory" else errno.EINVAL)
    assert "not a regular file" in str(error)


@linux
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/stdin", "/proc/self/fd/0"])
async def test_character_device_is_never_opened(top: Path, device: str) -> None:
    top.write_bytes(image(device))
    await refused(top)
    error = await fails(top, "any")
    assert not isinstance(error, BackingRefused)


async def test_block_device_needs_a_wider_policy(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may make one here, so the host's word for the file is changed."""
    top.write_bytes(image("base.raw"))
    base = top.parent / "base.raw"
    base.write_bytes(b"x" * SIZE)
    real_stat = os.stat

    def as_block_device(path: Any, **options: Any) -> os.stat_result:
        found = real_stat(path, **options)
        if os.fspath(path) != str(base):
            return found
        return os.stat_result((found.st_mode & 0o777 | stat.S_IFBLK, *found[1:]))

    monkeypatch.setattr(os, "stat", as_block_device)
    assert "block device" in str(await refused(top))
    async with opened(top, "any") as engine:
        assert await engine.read(1, 0) == b"x"


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
async def test_unreadable_file_is_a_backing_error(top: Path) -> None:
    top.write_bytes(image("base.raw"))
    (top.parent / "base.raw").touch(0)
    assert (await fails(top)).errno == errno.EACCES


async def test_damaged_image_is_a_backing_error_with_its_cause(top: Path) -> None:
    top.write_bytes(image("base.qed"))
    (top.parent / "base.qed").write_bytes(image()[:4096])
    error = await fails(top)
    assert error.errno == errno.EINVAL
    assert isinstance(error.__cause__, HeaderError)
    assert "l1_table_offset" in str(error)


async def test_host_error_is_a_backing_error_with_its_number(top: Path) -> None:
    top.write_bytes(image("base.raw", raw=True))
    (top.parent / "base.raw").write_bytes(b"x")

    async def opener(path: str, **options: Any) -> Storage:
        raise StorageError(errno.EMFILE, path=path)

    with pytest.raises(BackingError) as caught:
        async with opened(top, opener=opener):
            pass
    assert caught.value.errno == errno.EMFILE
    assert isinstance(caught.value.__cause__, StorageError)


# ------------------------------------------------------------------------------ loops and depth


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
async def test_image_that_names_itself_is_a_loop(top: Path, link: str | None) -> None:
    name = "other.qed" if link else "top.qed"
    top.write_bytes(image(name))
    if link == "symbolic":
        (top.parent / name).symlink_to(top)
    elif link == "hard":
        (top.parent / name).hardlink_to(top)
    error = await fails(top)
    assert error.errno == errno.ELOOP
    assert "comes back" in str(error)


async def test_chain_that_comes_back_is_a_loop(top: Path) -> None:
    for name, below in (("top", "a"), ("a", "b"), ("b", "c"), ("c", "a")):
        (top.parent / f"{name}.qed").write_bytes(image(f"{below}.qed"))
    error = await fails(top)
    assert error.errno == errno.ELOOP
    assert error.name == "a.qed"
    assert "c.qed" in str(error)


def make_chain(top: Path, depth: int) -> None:
    """``depth`` backing files; number n has cluster n, the last one is raw and has all."""
    path = top
    for number in range(depth):
        name = f"{number + 1}.img"
        size = (depth + 1) * CLUSTER
        path.write_bytes(image(name, size=size, clusters={number: bytes([number])}))
        path = top.parent / name
    path.write_bytes(b"\xff" * (depth + 1) * CLUSTER)


async def test_chain_of_64_reads_through_all_of_it(top: Path) -> None:
    make_chain(top, 64)
    async with opened(top) as engine:
        data = await engine.read(65 * CLUSTER, 0)
        assert data[::CLUSTER] == bytes([*range(64), 0xFF])
        runs = await engine.block_status(0, 65 * CLUSTER)
    assert [run.depth for run in runs] == list(range(65))
    assert {run.kind for run in runs[1:]} == {ExtentKind.BACKING}


async def test_chain_of_65_is_too_deep(top: Path) -> None:
    make_chain(top, 65)
    error = await fails(top)
    assert error.errno == errno.ELOOP
    assert error.name == "65.img"
    assert "64" in str(error)


async def test_chain_with_tables_of_many_mib_is_refused(top: Path) -> None:
    """Three files of some KiB on disk that would take 48 MiB of memory."""
    cluster, table = 1 << 20, 16
    for name, below in (("top", "1"), ("1", "2"), ("2", "3"), ("3", None)):
        header = new_header(1 << 62, cluster, table, below and f"{below}.qed")
        with (top.parent / f"{name}.qed").open("wb") as file:
            file.write(header.pack() + (f"{below}.qed".encode() if below else b""))
            file.truncate((1 + table) * cluster)
    error = await fails(top)
    assert error.errno == errno.ENOMEM
    assert error.name == "3.qed"


async def test_chain_shares_the_budget_of_the_cache(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_chain(top, 5)
    budgets: list[int] = []
    real_open = Engine.open

    async def spy(storage: Storage, options: EngineOptions, path: str = "") -> Engine:
        budgets.append(options.l2_cache_bytes)
        return await real_open(storage, options, path)

    monkeypatch.setattr(Engine, "open", spy)
    async with opened(top, l2_cache_bytes=1 << 20):
        assert budgets[1:] == [1 << 18] * 4  # after the overlay's own


# ---------------------------------------------------------------------------- what is read


async def test_recorded_raw_file_is_not_probed(top: Path) -> None:
    inner = image(clusters={0: b"i"})
    (top.parent / "base.raw").write_bytes(inner)
    top.write_bytes(image("base.raw", raw=True))
    async with opened(top) as engine:
        assert await engine.read(4096, 0) == inner[:4096]


async def test_unrecorded_file_with_magic_is_an_image(top: Path) -> None:
    (top.parent / "base.raw").write_bytes(image(clusters={0: b"i"}))
    top.write_bytes(image("base.raw"))
    async with opened(top) as engine:
        assert await engine.read(4096, 0) == b"i" * 4096


@pytest.mark.parametrize("content", [b"", b"QEx", b"QED\1" + bytes(60), b"QFI\xfb" + bytes(600)])
async def test_unrecorded_file_without_magic_is_raw(top: Path, content: bytes) -> None:
    (top.parent / "base.raw").write_bytes(content)
    top.write_bytes(image("base.raw"))
    async with opened(top) as engine:
        assert await engine.read(1024, 0) == content.ljust(1024, b"\0")


async def test_probed_image_has_to_pass_the_same_policy(top: Path) -> None:
    """A guest wrote a header into the raw disk that names a file of the host."""
    (top.parent.parent / "secret.raw").write_bytes(b"s" * SIZE)
    (top.parent / "base.raw").write_bytes(image("../secret.raw", raw=True))
    top.write_bytes(image("base.raw"))
    assert (await refused(top)).name == "../secret.raw"


async def test_name_in_a_backing_file_starts_at_that_files_directory(top: Path) -> None:
    sub = top.parent / "sub"
    sub.mkdir()
    top.write_bytes(image("sub/middle.qed"))
    (sub / "middle.qed").write_bytes(image("base.raw"))
    (sub / "base.raw").write_bytes(b"x" * SIZE)
    (top.parent / "base.raw").write_bytes(b"wrong" * SIZE)
    async with opened(top, "any") as engine:
        assert await engine.read(1, 0) == b"x"


@pytest.mark.parametrize("size", [0, 1, 511, 513, CLUSTER + 100, SIZE - 1, SIZE, SIZE + 100])
@pytest.mark.parametrize("kind", ["raw", "image"])
async def test_backing_file_of_other_size_is_cut_or_followed_by_zeroes(
    top: Path, kind: str, size: int
) -> None:
    if kind == "raw":
        (top.parent / "base").write_bytes(b"x" * size)
    else:
        size = size // 512 * 512
        clusters = {index: b"x" for index in range(-(-size // CLUSTER))}
        (top.parent / "base").write_bytes(image(size=size, clusters=clusters))
    top.write_bytes(image("base"))
    async with opened(top) as engine:
        data = await engine.read(SIZE, 0)
        assert data == (b"x" * size)[:SIZE].ljust(SIZE, b"\0")
        for pos in range(0, SIZE, 1000):
            assert await engine.read(min(1000, SIZE - pos), pos) == data[pos : pos + 1000]
        runs = await engine.block_status(0, SIZE)
    assert sum(run.length for run in runs) == SIZE
    assert sum(run.length for run in runs if run.kind is ExtentKind.BACKING) == min(size, SIZE)


async def test_zero_cluster_hides_and_unallocated_one_shows(top: Path) -> None:
    (top.parent / "base.raw").write_bytes(b"b" * SIZE)
    (top.parent / "middle.qed").write_bytes(image("base.raw", clusters={1: None, 2: b"m"}))
    top.write_bytes(image("middle.qed", clusters={2: None, 3: b"t"}))
    async with opened(top) as engine:
        data = await engine.read(5 * CLUSTER, 0)
        assert bytes(data[::CLUSTER]) == b"b\0\0tb"
        runs = await engine.block_status(0, 5 * CLUSTER)
    b, m = str(top.parent / "base.raw"), str(top.parent / "middle.qed")
    kinds = ExtentKind
    assert runs == [
        Extent(0, CLUSTER, kinds.BACKING, False, 2, 0, b),
        Extent(CLUSTER, CLUSTER, kinds.BACKING, True, 1),
        Extent(2 * CLUSTER, CLUSTER, kinds.ZERO, True, 0),
        Extent(3 * CLUSTER, CLUSTER, kinds.DATA, False, 0, DATA, str(top)),
        Extent(4 * CLUSTER, CLUSTER, kinds.BACKING, False, 2, 4 * CLUSTER, b),
    ]
    assert m != b


async def test_bad_table_below_names_the_file(top: Path) -> None:
    content = bytearray(image(clusters={0: b"x"}))
    content[L2 : L2 + 8] = (12345).to_bytes(8, "little")
    (top.parent / "base.qed").write_bytes(content)
    top.write_bytes(image("base.qed"))
    async with opened(top) as engine:
        for call in (engine.read(512, 0), engine.block_status(0, 512)):
            with pytest.raises(BackingError) as caught:
                await call
            assert str(top.parent / "base.qed") in str(caught.value)
            assert caught.value.name == "base.qed"
            assert isinstance(caught.value.__cause__, CorruptTable)


async def test_concurrent_reads_through_a_chain_agree(top: Path) -> None:
    make_chain(top, 6)
    async with opened(top) as engine:
        whole = await engine.read(7 * CLUSTER, 0)
        ranges = [(pos, 3000) for pos in range(0, 6 * CLUSTER, 100)]
        parts = await asyncio.gather(*(engine.read(length, pos) for pos, length in ranges))
        for (pos, length), part in zip(ranges, parts, strict=True):
            assert part == whole[pos : pos + length]


# ------------------------------------------------------------------------------ block status


BLOCK = 1 << 16
"""What a hole in memory is a multiple of, on every machine."""


async def sparse_runs(blocks: list[tuple[int, int]]) -> list[Extent]:
    """The runs of a sparse file, given first block and number of blocks of its data."""
    content = SparseBytes()
    for first, count in blocks:
        content.write(b"x" * count * BLOCK, first * BLOCK)
    content.resize(1000 * BLOCK + 100)
    source = RawSource(MemoryStorage(content), "base.raw")
    runs = await source.block_status(0, source.size)
    await source.close()
    return runs


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [(0, 1)],
        [(5, 1)],
        [(0, 3), (4, 1), (7, 40)],
        [(0, 16)],
        [(1, 600), (640, 30), (999, 2)],
        [(990, 11)],
    ],
)
async def test_raw_status_finds_holes(blocks: list[tuple[int, int]]) -> None:
    runs = await sparse_runs(blocks)
    size = 1000 * BLOCK + 100
    edges = {0, size, *(min(edge * BLOCK, size) for b in blocks for edge in (b[0], sum(b)))}
    assert [run.start for run in runs] == sorted(edges)[:-1]
    assert runs[-1].end == size
    for run in runs:
        data = any(first * BLOCK <= run.start < (first + n) * BLOCK for first, n in blocks)
        assert run.zero is not data
        assert (run.kind, run.depth) == (ExtentKind.DATA, 0)
        assert (run.offset, run.path) == (run.start, "base.raw")


@pytest.mark.parametrize("stride", [2, 3, 5, 17, 33])
async def test_raw_status_never_takes_data_for_a_hole(stride: int) -> None:
    """Holes that are short beside the data may be missed, and that is all."""
    blocks = [(first, stride - 1) for first in range(0, 990, stride)]
    for run in await sparse_runs(blocks):
        if run.zero:
            assert run.length == BLOCK or run.end == 1000 * BLOCK + 100
            assert run.start // BLOCK % stride == stride - 1


@pytest.mark.parametrize(("pos", "length"), [(0, 1), (100, 70000), (65535, 2), (70000, 130000)])
async def test_raw_status_of_a_part_is_the_part_of_the_whole(pos: int, length: int) -> None:
    content = SparseBytes()
    content.resize(400000)
    content.write(b"x" * 65536, 65536)
    source = RawSource(MemoryStorage(content), "base.raw")
    runs = await source.block_status(pos, length)
    assert runs[0].start == pos
    assert runs[-1].end == pos + length
    for before, after in itertools.pairwise(runs):
        assert before.end == after.start
        assert before.zero is not after.zero
    for run in runs:
        assert run.zero is not (65536 <= run.start < 131072)
    await source.close()


class FineStorage(MemoryStorage):
    """Knows data and holes to the byte, as no file system does."""

    async def next_data(self, offset: int) -> int:
        content = self.snapshot()
        return next((n for n in range(offset, self.size) if content[n]), self.size)


@pytest.mark.parametrize("length", [1, 600, 4096, 5000, 9000])
async def test_raw_status_of_holes_smaller_than_a_block_ends_and_loses_no_data(length: int) -> None:
    content = (b"x" * 100 + bytes(700)) * 12
    source = RawSource(FineStorage(content), "base.raw")
    runs = await source.block_status(50, length)
    assert [run.start for run in runs] == [50, *(run.end for run in runs[:-1])]
    assert runs[-1].end == 50 + length
    for run in runs:
        assert not (run.zero and any(content[run.start : run.end]))
    await source.close()


async def test_raw_status_of_storage_that_cannot_know_is_data(tmp_path: Path) -> None:
    path = tmp_path / "base.raw"
    path.write_bytes(bytes(3 << 20))
    source = RawSource(await open_storage(path, "aiofiles"), "base.raw")
    assert await source.block_status(0, 3 << 20) == [
        Extent(0, 3 << 20, ExtentKind.DATA, False, 0, 0, "base.raw")
    ]
    await source.close()


# -------------------------------------------------------------------- locks, and what stays open


@linux
@pytest.mark.parametrize("raw", [True, False])
async def test_raw_base_is_shared_with_a_writer_as_with_qemu(top: Path, raw: bool) -> None:
    """Recorded as raw, or found to be."""
    top.write_bytes(image("base.raw", raw=raw))
    base = top.parent / "base.raw"
    base.write_bytes(bytes(SIZE))
    open_writer = functools.partial(open_storage, base, writable=True, lock=LockRole.RAW_READ_WRITE)
    writer = await open_writer()
    async with opened(top):
        await writer.close()
        writer = await open_writer()
    await writer.close()


@linux
@pytest.mark.parametrize("lock", [True, False])
async def test_image_base_that_is_being_written_is_refused_unless_lock_is_off(
    top: Path, lock: bool
) -> None:
    top.write_bytes(image("base.qed"))
    base = top.parent / "base.qed"
    base.write_bytes(image(clusters={0: b"x"}))
    writer = await open_storage(base, writable=True, lock=LockRole.READ_WRITE)
    if lock:
        error = await fails(top)
        assert error.errno == errno.EAGAIN
        assert isinstance(error.__cause__, ImageLocked)
    else:
        async with opened(top, lock=False) as engine:
            assert await engine.read(1, 0) == b"x"
    await writer.close()
    async with opened(top):
        with pytest.raises(ImageLocked):
            await open_storage(base, writable=True, lock=LockRole.READ_WRITE)


class Counting:
    """Opens storages, and knows which are open; the last may fail or wait."""

    def __init__(self) -> None:
        self.open: list[Storage] = []
        self.opened = 0

    async def __call__(self, path: str, **options: Any) -> Storage:
        storage = await open_storage(path, **options)
        self.opened += 1
        self.open.append(storage)
        real_close = storage.close

        async def close() -> None:
            await real_close()
            if storage in self.open:
                self.open.remove(storage)

        storage.close = close  # type: ignore[method-assign]
        return storage


@pytest.mark.parametrize("broken", ["missing", "damaged", "loop", "l1"])
async def test_failure_below_closes_everything_above(top: Path, broken: str) -> None:
    make_chain(top, 3)
    last = top.parent / "3.img"
    if broken == "missing":
        last.unlink()
    elif broken == "damaged":
        last.write_bytes(image()[:4096])
    elif broken == "loop":
        last.write_bytes(image("1.img"))
    else:
        last.write_bytes(image("3.img"))
    opener = Counting()
    with pytest.raises(BackingError):
        async with opened(top, opener=opener):
            pass
    assert opener.opened >= 4  # each image twice: to see what it is, and with its locks
    assert opener.open == []


async def test_close_of_the_overlay_closes_the_chain(top: Path) -> None:
    make_chain(top, 3)
    opener = Counting()
    async with opened(top, opener=opener):
        assert len(opener.open) == 3
    assert opener.open == []


@pytest.mark.parametrize("lead", range(0, 120, 7))
async def test_open_backing_cancelled_leaves_nothing_open(top: Path, lead: int) -> None:
    make_chain(top, 3)
    opener = Counting()
    ready = asyncio.Event()

    async def use() -> None:
        async with opened(top, opener=opener):
            ready.set()

    using = asyncio.create_task(use())
    for _ in range(lead):
        await asyncio.sleep(0)
    using.cancel()
    try:
        await using
    except asyncio.CancelledError:
        assert using.cancelled()
    assert opener.open == []


async def test_direct_is_passed_on(top: Path) -> None:
    top.write_bytes(image("base.raw", raw=True))
    (top.parent / "base.raw").write_bytes(b"x" * SIZE)
    asked: list[dict[str, Any]] = []

    async def opener(path: str, **options: Any) -> Storage:
        asked.append(options)
        return await open_storage(path)

    storage = await open_storage(top)
    engine = await Engine.open(storage, EngineOptions(), str(top))
    open_it = functools.partial(
        open_backing, engine, str(top), "auto", open_storage=opener, l2_cache_bytes=0
    )
    for direct, lock in ((True, True), (False, False)):
        source = await open_it(direct=direct, lock=lock)
        assert source is not None
        await source.close()
    await engine.close()
    assert asked == [
        {"writable": False, "direct": True, "lock": LockRole.SHARED_READ},
        {"writable": False, "direct": False, "lock": None},
    ]


# ------------------------------------------------------------------------------------- interop


@qemu.needs_qemu
async def test_chain_that_qemu_made_reads_the_same(top: Path) -> None:
    directory = top.parent
    (directory / "base.raw").write_bytes(b"r" * (1 << 20) + bytes(1000))
    qemu.create(directory / "middle.qed", 2 << 20, backing=("base.raw", "raw"))
    qemu.io(directory / "middle.qed", "write -P 109 100k 200k", "write -z 512k 128k")
    qemu.create(top, 3 << 20, backing=("middle.qed", "qed"))
    qemu.io(top, "write -P 116 64k 64k", "write -z 0 64k", "write -P 117 2500k 1k")
    async with opened(top) as engine:
        data = await engine.read(3 << 20, 0)
        runs = [run async for run in engine.extents()]
    flat = directory / "flat.raw"
    qemu.convert(top, "qed", flat, "raw")
    assert data == flat.read_bytes()
    for run in runs:
        if run.zero:
            assert not any(data[run.start : run.end])
        if run.offset is not None:
            assert run.path is not None
            with open(run.path, "rb") as file:
                file.seek(run.offset)
                found = file.read(run.length).ljust(run.length, b"\0")
            assert found == data[run.start : run.end]
