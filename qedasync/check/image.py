"""The way into a check: who may be inside the image meanwhile, and what comes out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qedasync.check.marks import MAX_PAGES
from qedasync.check.reader import Pacer, Progress
from qedasync.check.result import Action, ActionKind, Bounded, CheckResult
from qedasync.check.survey import Survey
from qedasync.errors import ImageClosed, ImageFailed, ReadOnly
from qedasync.format.geometry import Geometry
from qedasync.format.header import Header
from qedasync.storage.base import Storage

if TYPE_CHECKING:
    from qedasync.check.repair import Repair
    from qedasync.engine.core import Engine

__all__ = ["check_image", "look_over"]


async def check_image(
    engine: Engine,
    *,
    repair: bool = False,
    progress: Progress | None = None,
    max_pages: int = MAX_PAGES,
) -> CheckResult:
    """Look at every table entry of an open image, and mend what is wrong if asked to.

    Without ``repair`` nothing is written, and the result's ``actions`` are what a repair would do.

    Args:
        progress: called with (done, total) tables now and then; each pass begins at 0 again.
        max_pages: memory for what is in use, in pages of :class:`~qedasync.check.marks.Marks`; an
            image that needs more takes several passes.

    Returns:
        what was found; after a repair, what is left.

    Raises:
        ReadOnly, ImageFailed, ImageClosed: the image takes no repair, or no check.
        StorageError: a repair could not be written or flushed. What cannot be read raises nothing
            and counts as ``check_errors``.

    Locks: holds the allocating turn; reads and writes in place go on. A repair is alone.
    Cancellation: between steps; a repair leaves an image that is no worse.
    """
    if not repair:
        async with _look_on(engine):
            survey = Survey(engine.storage, engine.geometry, Pacer(progress), max_pages)
            return _result(engine.header, engine.geometry, await survey.run())
    if not engine.options.writable:
        raise ReadOnly('A repair writes; open the image with mode "r+"')
    async with engine.exclusive():
        if engine.failure is not None:
            raise ImageFailed(
                "The image takes no repair since an earlier write failed; close it and open it"
                " again, which checks it"
            ) from engine.failure
        return await _repair(engine, progress, max_pages)


async def look_over(
    storage: Storage, header: Header, geometry: Geometry, progress: Progress | None = None
) -> CheckResult:
    """The same without a repair, of an image that nobody but the caller has open.

    Raises: nothing; what cannot be read counts as ``check_errors``.
    """
    survey = Survey(storage, geometry, Pacer(progress), MAX_PAGES)
    return _result(header, geometry, await survey.run())


async def _repair(engine: Engine, progress: Progress | None, max_pages: int) -> CheckResult:
    from qedasync.check.repair import mend  # late: few checks come to that

    repair = await mend(engine, progress, max_pages)
    return _result(engine.header, engine.geometry, repair.left, repair)


@asynccontextmanager
async def _look_on(engine: Engine) -> AsyncIterator[None]:
    """Be one of those inside, and keep others from allocating."""
    gate = engine.gate
    await gate.opened()
    if engine.closed:
        raise ImageClosed("The image is closed")
    gate.inside += 1
    try:
        async with engine.queue.turn:
            yield
    finally:
        gate.leave()


def _result(
    header: Header, geometry: Geometry, survey: Survey, repair: Repair | None = None
) -> CheckResult:
    found = repair.found if repair else survey
    actions = repair.actions if repair else _plan(header, survey)
    return CheckResult(
        corruptions=survey.corruptions,
        leaks=survey.leaks,
        check_errors=survey.check_errors,
        corruptions_fixed=max(0, found.corruptions - survey.corruptions),
        leaks_fixed=repair.clusters_cut if repair else 0,
        total_clusters=geometry.bytes_to_clusters(header.image_size),
        allocated_clusters=survey.allocated,
        fragmented_clusters=survey.fragmented,
        image_end_offset=survey.image_end_offset,
        need_check=header.need_check,
        repaired=bool(repair and actions.items),
        leak_ranges=tuple(survey.leak_ranges.items),
        leak_ranges_omitted=survey.leak_ranges.omitted,
        findings=tuple(found.findings.items),
        findings_omitted=found.findings.omitted,
        actions=tuple(actions.items),
        actions_omitted=actions.omitted,
        cut_short=survey.cut_short,
        read_errno=found.read_errno or survey.read_errno or (repair.read_errno if repair else None),
    )


def _plan(header: Header, survey: Survey) -> Bounded[Action]:
    """What a repair would do, in its order."""
    plan: Bounded[Action] = Bounded()
    plan.extend(survey.clears)
    if survey.may_cut:
        plan.add(Action(ActionKind.CUT_TAIL, offset=survey.image_end_offset))
    if not survey.cut_short:
        plan.extend(survey.copies)
    is_mended = not survey.left_behind and not survey.cut_short
    if header.need_check and not survey.check_errors and is_mended:
        plan.add(Action(ActionKind.CLEAR_NEED_CHECK))
    return plan
