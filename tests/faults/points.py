"""Fault points: every storage call of a scenario, times every way in which it can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from errno import EAGAIN, EIO, ENOSPC

from qedasync.errors import ImageClosed, ImageFailed, QEDError
from qedasync.events import Event
from qedasync.image import Image, open_image
from qedasync.storage.base import Storage
from qedasync.storage.faults import Call, Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.faults.guest import CLUSTER, Guest, Layer, suspending
from tests.faults.model import Model
from tests.faults.scenarios import Scenario

__all__ = ["WAYS", "Base", "Point", "fault_points", "points_of", "prepare", "run_point"]

WAYS = {
    "EIO": Fault("error", errno=EIO),
    "ENOSPC": Fault("error", errno=ENOSPC),
    "EAGAIN": Fault("error", errno=EAGAIN),
    "error-after": Fault("error-after"),
    "short": Fault("short"),
    "torn": Fault("torn"),
    "delay": Fault("delay", turns=3),
    "cancel": Fault("cancel", callback=lambda: None),
    "broken": Fault("error", once=False),  # from this call on nothing works any more
}

HANG = 20.0
"""Seconds after which a run has hung; a run takes milliseconds."""


@dataclass(frozen=True)
class Point:
    """One call that goes wrong.

    Attributes:
        way: how; a key of ``WAYS``.
        layer: which file of the chain.
        number: which of its calls, from 0 on.
        call: what that call is.
        nth: the same as the fault counts it: among the calls that this way can hit, from 1 on.
    """

    way: str
    layer: int
    number: int
    call: Call
    nth: int

    def __str__(self) -> str:
        return f"{self.way} at call {self.number} of layer {self.layer}, {self.call}"


@dataclass
class Base:
    """A chain of files as a scenario finds them, and what is known of them."""

    scenario: Scenario
    files: list[SparseBytes]
    model: Model
    storages: list[FaultStorage] = field(default_factory=list)

    def guest(self) -> Guest:
        """A guest with copies of the files."""
        self.storages = [suspending(content.copy()) for content in self.files]
        return self._guest(self.storages, self.model.copy())

    def _guest(self, storages: Sequence[Storage], model: Model) -> Guest:
        raw = [False] * len(storages)
        if self.scenario.below:
            raw[-1] = True
        layers = [Layer(storage, is_raw) for storage, is_raw in zip(storages, raw, strict=True)]
        guest = Guest(model, layers, self.scenario.options, {self.scenario.size})
        guest.last_value = 0x40 if model.touched else 0  # not a value that is there already
        return guest

    def again(self, guest: Guest) -> Guest:
        """Somebody who comes after ``guest`` and knows what it knew."""
        later = self._guest([MemoryStorage(content) for content in self.contents()], guest.model)
        later.sizes = guest.sizes
        return later

    def contents(self) -> list[SparseBytes]:
        """The files as they are now."""
        inner = [storage.inner for storage in self.storages]
        return [storage.content for storage in inner if isinstance(storage, MemoryStorage)]


async def prepare(scenario: Scenario) -> Base:
    """The files before the script."""
    base = Base(scenario, scenario.files(), Model(scenario.initial))
    guest = base.guest()
    await guest.open()
    await scenario.prepare(guest)
    await guest.close()
    assert not guest.errors
    base.files, base.model = base.contents(), guest.model
    if scenario.damage:
        scenario.damage(base.files[0])
    return base


async def fault_points(base: Base) -> list[Point]:
    """Run the script without a fault, note its calls, and make points of them."""
    guest = base.guest()
    if base.scenario.opened:
        await guest.open()
    before = [len(storage.calls) for storage in base.storages]
    await base.scenario.script(guest)
    assert not guest.errors
    counted = [s.calls[n:] for s, n in zip(base.storages, before, strict=True)]
    await guest.close()
    return [
        point
        for layer, calls in enumerate(counted)
        for way, fault in WAYS.items()
        for point in points_of(way, fault, layer, calls)
    ]


def points_of(way: str, fault: Fault, layer: int, calls: list[Call]) -> Iterator[Point]:
    """The calls that can go wrong in this way."""
    nth = 0
    for number, call in enumerate(calls):
        if fault.matches(call.op, call.event):
            nth += 1
            yield Point(way, layer, number, call, nth)


async def run_point(base: Base, point: Point) -> None:
    """Run the script with a fault and hold everybody to their promises."""
    guest = base.guest()
    async with asyncio.timeout(HANG):
        if base.scenario.opened:
            await guest.open()
        cancelled = await _disturb(base, guest, point)
        _check_errors(guest, point, cancelled=cancelled)
        if guest.image is not None:
            await _check_alive(guest, point)
        await _check_file(base, guest)


async def _disturb(base: Base, guest: Guest, point: Point) -> bool:
    """The script with the fault; whether it was cancelled."""
    task = asyncio.ensure_future(base.scenario.script(guest))
    fault = replace(WAYS[point.way], call=point.nth)
    if point.way == "cancel":
        fault = replace(fault, callback=task.cancel)
    storage = base.storages[point.layer]
    storage.add(fault)
    await asyncio.wait([task])
    assert storage.fired, "the call did not happen"
    for each in base.storages:
        each.clear()
    if not task.cancelled():
        task.result()
    return task.cancelled()


def _check_errors(guest: Guest, point: Point, *, cancelled: bool) -> None:
    """The right errors, and no more of them than there were faults."""
    assert cancelled is (point.way == "cancel")
    errors = [error for error in guest.errors if not isinstance(error, ImageClosed)]
    if point.way in ("delay", "cancel"):
        assert not errors
    for error in errors:
        assert getattr(error, "errno", None) == WAYS[point.way].errno, repr(error)
    if _hits_one(point):
        assert len(errors) <= 1, f"one fault, but {errors}"


def _hits_one(point: Point) -> bool:
    """Whether one request at most can fail: no shared load, no image that fails as a whole."""
    return point.way != "broken" and not _may_fail_the_image(point) and not _is_shared(point)


def _is_shared(point: Point) -> bool:
    return point.call.event is Event.L2_LOAD


def _may_fail_the_image(point: Point) -> bool:
    return point.way == "broken" or point.call.op == "flush"


async def _check_alive(guest: Guest, point: Point) -> None:
    """Reads go on; writes too, or they say that the image has failed."""
    await guest.look_at_everything()
    guest.errors.clear()
    spare = (guest.disk.size // CLUSTER - 3) * CLUSTER
    await guest.write(spare, 512)
    await guest.write(spare + 512, 512)
    await guest.flush()
    if guest.errors and not _was_in_background(guest.errors, point):
        assert _may_fail_the_image(point), guest.errors
        assert all(isinstance(error, ImageFailed) for error in guest.errors), guest.errors
    await guest.close()


def _was_in_background(errors: list[QEDError], point: Point) -> bool:
    """Whether this is the one report of a fault that met the timer."""
    return len(errors) == 1 and getattr(errors[0], "errno", None) == WAYS[point.way].errno


async def _check_file(base: Base, guest: Guest) -> None:
    """What is in the files is sound, and everything that was acknowledged is there."""
    for below in base.storages[1:]:
        assert not below.count("write") + below.count("write_zeroes") + below.count("truncate")
    if base.scenario.damage is None:  # even before the repair that an open for writing does
        storage = MemoryStorage(base.contents()[0].copy())
        async with open_image("disk.qed", storage=storage, backing=False) as disk:
            await _check(disk)
    later = base.again(guest)
    await later.open()
    assert not later.errors
    await later.look_at_everything()
    if base.scenario.damage is not None:
        await _check(later.disk)
    await later.close()
    assert not later.errors


async def _check(disk: Image) -> None:
    result = await disk.check()
    assert not result.corruptions
    assert not result.check_errors
