"""Any mixture of requests leaves what a bytearray would hold.

Two drivers make the mixtures: hypothesis, which shrinks what fails, and seeded batches over every
kind of storage. After each example the mapping, a check and the counters must agree too.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qedasync.errors import StorageError
from qedasync.image import Image, open_image
from qedasync.storage.base import Storage
from qedasync.storage.memory import MemoryStorage
from tests.conftest import pytest_asyncio_loop_factories
from tests.helpers.model import DirtyGrowth, Jitter, Kind, Model, Shape, blank, random_ops

MIB = 1 << 20
K = 1024

# Sizes put the image's end, a slice's border and, where it is near, a table's border in reach.
SHAPES = (
    Shape(4096, 1, 2 * MIB + 3 * 4096 + 512),
    Shape(4096, 1, 4 * MIB + 512),
    Shape(4096, 2, 4 * MIB + 7 * 512),
    Shape(4096, 4, 4 * MIB + 4096),
    Shape(4096, 16, 2 * MIB + 20 * K + 1536),
    Shape(65536, 1, 512 * K + 512),
    Shape(65536, 4, 33 * MIB + 3 * 512),
    Shape(4096, 1, 14 * MIB + 512),  # more slices than the smallest cache holds
    Shape(4096, 1, 4096),
    Shape(4096, 1, 512),
)

BACKINGS = ("none", "empty", "shorter", "equal", "longer", "chain")

CACHES: tuple[Literal["writeback", "writethrough", "unsafe"], ...] = (
    "writeback",
    "writethrough",
    "unsafe",
)

MEMORY = ("memory", "memory-async", "dirty-growth", "jitter")


@dataclass
class Place:
    """A directory with an image and its backing files.

    Attributes:
        content: what the guest sees.
    """

    directory: Path
    shape: Shape
    content: bytearray

    @property
    def path(self) -> Path:
        return self.directory / "disk.qed"

    @classmethod
    async def make(cls, directory: Path, shape: Shape, backing: str, seed: int) -> Place:
        """Lay an empty image down; see ``BACKINGS``."""
        name, below = "", b""
        if backing == "chain":
            name, below = "middle.qed", await _make_middle(directory, shape, seed)
        elif backing != "none":
            name, below = "base.raw", _raw(_raw_length(backing, shape.size), seed)
            (directory / name).write_bytes(below)
        content = bytearray(below[: shape.size].ljust(shape.size, b"\0"))
        image = blank(
            shape.size, shape.cluster_size, shape.table_size, name, raw=name == "base.raw"
        )
        place = cls(directory, shape, content)
        place.path.write_bytes(image)
        return place


def _raw_length(backing: str, size: int) -> int:
    return {
        "empty": 0,
        "shorter": max(size - 4096 - 333, 7),
        "equal": size,
        "longer": size + 5 * 4096 + 77,
    }[backing]


def _raw(length: int, seed: int) -> bytes:
    """Noise with holes."""
    noise = random.Random(seed).randbytes(4099)
    content = bytearray((noise * (length // len(noise) + 1))[:length])
    for start in range(0, length, 3 * 65536):
        hole = content[start : start + 65536]
        content[start : start + 65536] = bytes(len(hole))
    return bytes(content)


async def _make_middle(directory: Path, shape: Shape, seed: int) -> bytes:
    """``middle.qed`` with something of its own over ``base.raw``, and another size."""
    base = _raw(shape.size // 2 + 99, seed)
    (directory / "base.raw").write_bytes(base)
    size = shape.size + 3 * 512
    path = directory / "middle.qed"
    path.write_bytes(blank(size, 4096, 2, "base.raw", raw=True))
    model = Model(base[:size].ljust(size, b"\0"))
    rng = random.Random(seed)
    async with open_image(path, "r+") as middle:
        await model.run(middle, random_ops(rng, Shape(4096, 2, size), 8))
    return bytes(model.content)


# ------------------------------------------------------------------- hypothesis


class Disk(RuleBasedStateMachine):
    """One image in memory; each step is a batch of requests, a reopening or a growth."""

    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner(loop_factory=type(self).loop_factory)
        self._directory = tempfile.TemporaryDirectory()
        self._disk: Image | None = None

    @initialize(
        shape=st.sampled_from(SHAPES),
        backing=st.sampled_from(BACKINGS),
        storage=st.sampled_from(MEMORY),
        cache=st.sampled_from(CACHES),
        l2_cache=st.sampled_from((0, 1 << 20)),
        seed=st.integers(0, 1 << 16),
    )
    def start(
        self,
        shape: Shape,
        backing: str,
        storage: str,
        cache: Literal["writeback", "writethrough", "unsafe"],
        l2_cache: int,
        seed: int,
    ) -> None:
        self._shape, self._cache, self._seed = shape, cache, seed
        self._kind, self._l2_cache = storage, l2_cache
        directory = Path(self._directory.name)
        self._place = self._runner.run(Place.make(directory, shape, backing, seed))
        self._model = Model(self._place.content)
        self._memory = _memory(storage, self._place.path.read_bytes())
        self._runner.run(self._open("r+"))

    async def _open(self, mode: Literal["r", "r+"]) -> None:
        """On a copy of what the last one left, since an image closes its storage."""
        self._memory = _memory(self._kind, self._memory.snapshot())
        storage = _wrapped(self._kind, self._memory, self._seed)
        self._model.counts = dict.fromkeys(Kind, 0)
        self._disk = await open_image(
            self._place.path,
            mode,
            storage=storage,
            cache=self._cache,
            l2_cache_size=self._l2_cache,
        )

    async def _close(self) -> None:
        assert self._disk is not None
        await self._model.check(self._disk, self._memory)
        self._model.check_stats(self._disk)
        await self._disk.close()
        self._disk = None
        assert not self._memory.snapshot()[16] & 2, "NEED_CHECK is left"

    @rule(
        specs=st.lists(
            st.tuples(
                st.sampled_from(Kind),
                st.integers(0, 15),
                st.integers(-9000, 9000),
                st.integers(0, 6 * 4096) | st.sampled_from((4096, 65536, 40 * 4096)),
                st.integers(0, 255),
                st.integers(0, 255),
            ),
            min_size=1,
            max_size=16,
        )
    )
    def batch(self, specs: list[tuple[Kind, int, int, int, int, int]]) -> None:
        assert self._disk is not None
        ops = [self._shape.op(*spec) for spec in specs]
        self._runner.run(self._model.run(self._disk, ops))

    @precondition(lambda self: self._shape.size < 8 * MIB)
    @rule(sectors=st.integers(0, 24) | st.just(4096), seed=st.integers(0, 255))
    def grow(self, sectors: int, seed: int) -> None:
        """While requests run."""
        assert self._disk is not None
        ops = random_ops(random.Random(seed), self._shape, seed % 5)
        size = self._shape.size + sectors * 512
        self._runner.run(self._model.run(self._disk, ops, grow_to=size))
        self._shape = Shape(self._shape.cluster_size, self._shape.table_size, size)

    @rule(read_only_between=st.booleans())
    def reopen(self, read_only_between: bool) -> None:
        self._runner.run(self._reopen(read_only_between))

    async def _reopen(self, read_only_between: bool) -> None:
        await self._close()
        if read_only_between:
            before = self._memory.snapshot()
            await self._open("r")
            await self._close()
            assert self._memory.snapshot() == before
        await self._open("r+")

    def teardown(self) -> None:
        try:
            if self._disk is not None:
                self._runner.run(self._close())
        finally:
            self._runner.close()
            self._directory.cleanup()


def _memory(kind: str, content: bytes) -> MemoryStorage:
    if kind == "dirty-growth":
        return DirtyGrowth(content, inline=False)
    return MemoryStorage(content, inline=kind != "memory-async")


def _wrapped(kind: str, memory: MemoryStorage, seed: int) -> Storage:
    return Jitter(memory, seed) if kind == "jitter" else memory


@pytest.mark.parametrize("loop", pytest_asyncio_loop_factories())
def test_disk_any_sequence_of_batches_agrees_with_model(loop: str) -> None:
    factory = staticmethod(pytest_asyncio_loop_factories()[loop])
    machine = type("DiskOn" + loop.title(), (Disk,), {"loop_factory": factory})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


# ---------------------------------------------------------------- seeded batches

FILES = ("aiofiles", "posix", "direct") if sys.platform == "linux" else ("aiofiles",)


@dataclass(frozen=True)
class Case:
    storage: str
    shape: Shape
    backing: str = "none"
    cache: Literal["writeback", "writethrough", "unsafe"] = "writeback"
    l2_cache: int = 1 << 20

    def __str__(self) -> str:
        shape = self.shape
        return (
            f"{self.storage}-{shape.cluster_size}x{shape.table_size}-{shape.size}"
            f"-{self.backing}-{self.cache}-{self.l2_cache}"
        )


CASES = (
    *(Case(storage, SHAPES[0]) for storage in (*MEMORY, *FILES)),
    *(Case(storage, SHAPES[1], "chain", l2_cache=0) for storage in (*MEMORY, *FILES)),
    *(Case("jitter", shape, "longer", l2_cache=0) for shape in SHAPES),
    *(Case(storage, SHAPES[7], l2_cache=0) for storage in ("jitter", "memory-async", FILES[-1])),
    *(Case("memory-async", SHAPES[2], backing) for backing in BACKINGS),
    *(Case("posix" if FILES[1:] else "aiofiles", SHAPES[0], cache=cache) for cache in CACHES),
    Case(FILES[-1], SHAPES[5], "shorter", "writethrough"),
)


GROWTHS = (512, 7 * 512, 4096, 5 * 4096 - 512, MIB)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_disk_random_batches_agree_with_model(case: Case, tmp_path: Path) -> None:
    rng = random.Random(str(case))
    place = await Place.make(tmp_path, case.shape, case.backing, seed=7)
    model = Model(place.content)
    content, shape = place.path.read_bytes(), case.shape
    for _ in range(2):
        model.counts = dict.fromkeys(Kind, 0)
        disk, storage = await _open_case(case, place, content)
        async with disk:
            for _ in range(4):
                await model.run(disk, random_ops(rng, shape, rng.randint(1, 16)))
            larger = replace(shape, size=shape.size + rng.choice(GROWTHS))
            await model.run(disk, random_ops(rng, shape, 5), grow_to=larger.size)
            shape = larger
            await model.run(disk, random_ops(rng, shape, 5))
            await model.check(disk, storage)
            model.check_stats(disk)
        content = storage.snapshot() if storage is not None else b""


async def _open_case(
    case: Case, place: Place, content: bytes
) -> tuple[Image, MemoryStorage | None]:
    """The image, and what it lies in if that is memory."""
    if case.storage in MEMORY:
        memory = _memory(case.storage, content)
        disk = await open_image(
            place.path,
            "r+",
            storage=_wrapped(case.storage, memory, seed=len(content)),
            cache=case.cache,
            l2_cache_size=case.l2_cache,
        )
        return disk, memory
    direct = case.storage == "direct"
    try:
        disk = await open_image(
            place.path,
            "r+",
            storage="posix" if direct else case.storage,
            cache="none" if direct else case.cache,
            l2_cache_size=case.l2_cache,
        )
    except StorageError as error:
        if not direct:
            raise
        pytest.skip(f"no O_DIRECT in the temporary directory: {error}")
    return disk, None
