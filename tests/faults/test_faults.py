"""Every storage call of every scenario goes wrong in every way; each time all promises are held.

The promises are those of the image (docs: I/O errors): every part of the disk is old or new, only
the requests whose call failed fail, the image stays usable unless a flush or the undoing of a
metadata write failed, and what is in the file afterwards is sound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from qedasync.create import create
from qedasync.errors import FormatError
from qedasync.storage.faults import FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.faults.disks import SIZE, content_of, filled, look
from tests.faults.guest import CLUSTER
from tests.faults.points import WAYS, fault_points, points_of, prepare, run_point
from tests.faults.scenarios import SCENARIOS, Scenario

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)


@contextmanager
def without_debug_mode() -> Iterator[None]:
    """The loop at its own speed: for thousands of short runs."""
    loop = asyncio.get_running_loop()
    loop.set_debug(False)
    try:
        yield
    finally:
        loop.set_debug(True)


@each_scenario
async def test_scenario_with_any_call_gone_wrong_keeps_every_promise(scenario: Scenario) -> None:
    """Half of the points on this loop, the other half on the other."""
    on_asyncio = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
    await run_points(scenario, 0 if on_asyncio else 1, 2)


@pytest.mark.slow
@each_scenario
async def test_scenario_with_every_point_on_this_loop_keeps_every_promise(
    scenario: Scenario,
) -> None:
    await run_points(scenario, 0, 1)


async def run_points(scenario: Scenario, first: int, step: int) -> None:
    """Run every ``step``-th fault point of a scenario."""
    base = await prepare(scenario)
    with without_debug_mode():
        for point in (await fault_points(base))[first::step]:
            try:
                await run_point(base, point)
            except BaseException as error:
                error.add_note(f"{scenario.name}: {point}")
                raise


async def test_create_over_an_image_with_any_call_gone_wrong_leaves_old_or_none_or_new() -> None:
    old = await filled(0, 1, 2)
    counted = FaultStorage(MemoryStorage(old.copy()))
    await create("disk.qed", SIZE // 2, cluster_size=CLUSTER, storage=counted)
    for way, fault in WAYS.items():
        for point in points_of(way, fault, 0, counted.calls):
            storage = FaultStorage(MemoryStorage(old.copy(), inline=False))
            new = create("disk.qed", SIZE // 2, cluster_size=CLUSTER, storage=storage)
            task = asyncio.ensure_future(new)
            callback = task.cancel if way == "cancel" else None
            storage.add(replace(fault, call=point.nth, callback=callback))
            await asyncio.wait([task])
            assert storage.fired, point
            error = None if task.cancelled() else task.exception()
            assert task.cancelled() is (way == "cancel"), point
            assert (error is None) is (way in ("cancel", "delay")), point
            assert getattr(error, "errno", fault.errno) == fault.errno
            content = content_of(storage)
            if bytes(content) == bytes(old):
                assert point.number == 0, f"the old image came back after {point}"
                continue
            try:
                data = await look(content, SIZE // 2, 0)
            except FormatError:
                assert way != "delay", point
            else:
                assert data == bytes(SIZE // 2), point


async def test_fault_points_of_all_scenarios_are_thousands() -> None:
    counts = {s.name: len(await fault_points(await prepare(s))) for s in SCENARIOS}
    print(f"{sum(counts.values())} fault points in {len(counts)} scenarios")
    assert len(counts) >= 40
    assert min(counts.values()) >= 9, counts
    assert sum(counts.values()) >= 4000, counts
