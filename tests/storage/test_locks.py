"""The byte-range locks: which bytes each role holds, and whom it keeps out (dossier §13)."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from qedasync.errors import ImageLocked, QEDError, StorageError
from qedasync.storage.locks import LockRole, acquire_locks, release_locks
from tests.helpers import qemu
from tests.helpers.process import Ended

if sys.platform != "linux":
    pytest.skip("open-file-description locks are Linux's", allow_module_level=True)

import fcntl

OFD_GETLK, OFD_SETLK = 36, 37
FLOCK = struct.Struct("@hhqqi4x")

HELD = {
    LockRole.READ_WRITE: {100, 101, 103, 201, 203},
    LockRole.READ_ONLY: {100, 201, 203},
    LockRole.INFO: {201, 203},
    LockRole.SHARED_READ: {100},
    LockRole.CREATE: {101, 103, 203},
    LockRole.RAW_READ_WRITE: {100, 101, 103, 201, 203},
}
"""The bytes that QEMU holds in the same role."""

READERS = {LockRole.READ_ONLY, LockRole.INFO}


def together(first: LockRole, second: LockRole) -> bool:
    """Whether two may have the file at once: both only read, or one reads whatever others do."""
    roles = {first, second}
    return LockRole.SHARED_READ in roles or roles <= READERS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    path.write_bytes(bytes(512))
    return path


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def held(path: Path) -> set[int]:
    """The bytes on which anybody has a lock."""
    with opened(path, os.O_RDWR) as fd:
        return {byte for byte in range(300) if lock_type(fd, byte) != fcntl.F_UNLCK}


def lock_type(fd: int, byte: int) -> int:
    """What keeps ``fd`` from locking the byte exclusively."""
    question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind: int = FLOCK.unpack(fcntl.fcntl(fd, OFD_GETLK, question))[0]
    return kind


@pytest.mark.parametrize("role", LockRole)
def test_role_holds_its_bytes_shared_until_close(path: Path, role: LockRole) -> None:
    with opened(path) as fd, opened(path) as other:
        acquire_locks(fd, role, path)
        assert held(path) == HELD[role]
        assert {lock_type(other, byte) for byte in HELD[role]} == {fcntl.F_RDLCK}
    assert held(path) == set()


def test_release_gives_back_every_byte(path: Path) -> None:
    with opened(path) as fd:
        acquire_locks(fd, LockRole.READ_WRITE, path)
        release_locks(fd)
        assert held(path) == set()


def test_locks_stay_when_another_descriptor_of_the_file_closes(path: Path) -> None:
    with opened(path) as fd:
        acquire_locks(fd, LockRole.READ_ONLY, path)
        with opened(path):
            pass
        assert held(path) == HELD[LockRole.READ_ONLY]


@pytest.mark.parametrize("second", LockRole)
@pytest.mark.parametrize("first", LockRole)
def test_two_roles_exclude_each_other_if_one_writes(
    path: Path, first: LockRole, second: LockRole
) -> None:
    with opened(path) as one, opened(path) as other:
        acquire_locks(one, first, path)
        allowed = together(first, second)
        with nullcontext() if allowed else pytest.raises(ImageLocked):
            acquire_locks(other, second, path)
        assert held(path) == HELD[first] | (HELD[second] if allowed else set())


def test_acquire_twice_on_one_description_is_no_conflict(path: Path) -> None:
    with opened(path) as fd:
        acquire_locks(fd, LockRole.READ_WRITE, path)
        acquire_locks(fd, LockRole.READ_WRITE, path)
        assert held(path) == HELD[LockRole.READ_WRITE]


@pytest.mark.parametrize("byte", [100, 101, 103, 201, 203])
def test_exclusive_lock_of_a_stranger_keeps_us_out(path: Path, byte: int) -> None:
    with opened(path) as fd, opened(path, os.O_RDWR) as stranger:
        lock = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(stranger, OFD_SETLK, lock)
        with pytest.raises(ImageLocked) as caught:
            acquire_locks(fd, LockRole.READ_WRITE, path)
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.filename == str(path)
        assert "lock=False" in str(caught.value)
        assert held(path) == {byte}


def test_posix_locks_of_a_stranger_conflict_too(path: Path) -> None:
    """A program of the time before open-file-description locks holds them for the process."""
    with opened(path, os.O_RDWR) as stranger, opened(path) as fd:
        fcntl.lockf(stranger, fcntl.LOCK_SH, 1, 201)
        with pytest.raises(ImageLocked, match="forbids"):
            acquire_locks(fd, LockRole.READ_WRITE, path)


def test_acquire_closed_descriptor_raises_storage_error(path: Path) -> None:
    with opened(path) as fd:
        pass
    with pytest.raises(QEDError) as caught:
        acquire_locks(fd, LockRole.READ_WRITE, path)
    assert isinstance(caught.value, StorageError)
    assert caught.value.errno == errno.EBADF


# ---------------------------------------------------------------- with QEMU in another process


def qemu_writes(image: Path) -> None:
    with qemu.hold(image) as holder:
        holder.leave()


def qemu_reads(image: Path) -> None:
    with qemu.hold(image, "-r") as holder:
        holder.leave()


def qemu_asks(image: Path) -> None:
    result = qemu.img("info", "-f", "qed", image, status=None)
    if result.returncode:
        raise Ended(result.stderr)


def qemu_creates(image: Path) -> None:
    result = qemu.img("create", "-q", "-f", "qed", image, "1M", status=None)
    if result.returncode:
        raise Ended(result.stderr)


KEPT_OUT: dict[LockRole, set[Callable[[Path], None]]] = {
    LockRole.READ_WRITE: {qemu_writes, qemu_reads, qemu_asks, qemu_creates},
    LockRole.RAW_READ_WRITE: {qemu_writes, qemu_reads, qemu_asks, qemu_creates},
    LockRole.CREATE: {qemu_writes, qemu_reads, qemu_asks, qemu_creates},
    LockRole.READ_ONLY: {qemu_writes, qemu_creates},
    LockRole.INFO: {qemu_writes, qemu_creates},
    LockRole.SHARED_READ: set(),
}
"""Which uses QEMU is refused while we have the image."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    qemu.create(path, 1 << 20)
    return path


@qemu.needs_qemu
@pytest.mark.parametrize("use", [qemu_writes, qemu_reads, qemu_asks, qemu_creates])
@pytest.mark.parametrize("role", LockRole)
def test_role_keeps_qemu_out(image: Path, role: LockRole, use: Callable[[Path], None]) -> None:
    with opened(image) as fd:
        acquire_locks(fd, role, image)
        with pytest.raises(Ended, match="lock") if use in KEPT_OUT[role] else nullcontext():
            use(image)
    use(image)


@qemu.needs_qemu
@pytest.mark.parametrize(
    ("options", "like"), [((), LockRole.READ_WRITE), (("-r",), LockRole.READ_ONLY)]
)
def test_qemu_holds_the_same_bytes_and_keeps_the_same_roles_out(
    image: Path, options: tuple[str, ...], like: LockRole
) -> None:
    with qemu.hold(image, *options) as holder:
        assert held(image) == HELD[like]
        for role in LockRole:
            with opened(image) as fd:
                allowed = together(like, role)
                with nullcontext() if allowed else pytest.raises(ImageLocked):
                    acquire_locks(fd, role, image)
        holder.leave()
    assert held(image) == set()
