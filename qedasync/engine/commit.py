"""Group commit: from a group of allocating writes to entries on disk, in an order that is safe.

1. look up again, hand out clusters (:class:`~qedasync.engine.plan.Plan`)
2. read what the backing file has for the untouched parts
3. NEED_CHECK, durable (without a backing file)
4. grow the file; write the data, and new L2 tables, which nothing points to yet
5. flush, if data must be durable before it is reachable (backing file) or a table is new
6. write L2 entries, and L1 entries of the new tables
7. publish in memory

Without a backing file and without a new table nothing needs a flush, and 4 and 6 are one trip
through the storage. If 6 fails, the old entries are written back; if even that fails, what is on
disk is unknown and the image refuses writes from then on.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Sequence

from qedasync.engine.alloc_queue import AllocatingWrite
from qedasync.engine.allocator import Allocator
from qedasync.engine.fanout import run_all
from qedasync.engine.need_check import NeedCheck
from qedasync.engine.plan import Plan
from qedasync.engine.source import Source
from qedasync.engine.stats import Stats
from qedasync.engine.tables import Tables
from qedasync.errors import QEDError
from qedasync.storage.base import Storage, Write

__all__ = ["Committer"]


class Committer:
    """Commits groups for one image.

    Args:
        flush: makes everything written durable; raises, and fails the image, if it cannot.
        fail: told when the outcome of a metadata write is unknown.

    Attributes:
        backing: what unallocated areas come from, or None.
        image_size: guest bytes.
        ordered: let data be durable before it is reachable without a backing file too; the image
            then never needs a check.
    """

    def __init__(
        self,
        storage: Storage,
        tables: Tables,
        allocator: Allocator,
        need_check: NeedCheck,
        stats: Stats,
        flush: Callable[[], Awaitable[None]],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.backing: Source | None = None
        self.image_size = 0
        self.ordered = False
        self._storage = storage
        self._tables = tables
        self._allocator = allocator
        self._need_check = need_check
        self._stats = stats
        self._flush = flush
        self._fail = fail

    async def commit(self, group: Sequence[AllocatingWrite]) -> None:
        """Carry a group out, all of it.

        Raises:
            QEDError: some step failed; the old mapping stands, clusters handed out are leaked.

        Locks: the caller holds the allocating turn. Order: see the module.
        """
        if self._storage.size > self._allocator.end_of_file:
            # Differs from QEMU: part of a cluster that a crash left behind would show through.
            # Flushed, or a second crash might keep the clusters to come and forget the cut.
            await self._storage.truncate(self._allocator.end_of_file)
            await self._flush()
        ordered = self.ordered or self.backing is not None
        plan = await self._plan(group)
        if plan.fills:
            await self._read_fills(plan)
        if plan.updates and not ordered:
            await self._need_check.set()
        with self._tables.hold(plan.slices):
            await self._write(plan, ordered)
            self._tables.publish(plan.updates, plan.new_tables)
        self._stats.groups += 1
        self._stats.grouped_writes += len(group)
        self._stats.clusters_allocated += plan.n_clusters

    async def _plan(self, group: Sequence[AllocatingWrite]) -> Plan:
        shift = self._tables.geometry.slice_shift
        slices: dict[int, array[int]] = {}
        for request in group:
            number = request.pos >> shift
            if number not in slices:
                entries = await self._tables.slice_entries(number)
                self._tables.check_nothing_lost(number, entries)
                slices[number] = entries
        copy_below = 0
        if self.backing is not None:
            copy_below = min(self.backing.size, self.image_size)
        plan = Plan(
            self._tables,
            self._allocator,
            slices,
            copy_below=copy_below,
            zero_fills=self._storage.zero_fills,
        )
        plan.place(group)
        return plan

    async def _read_fills(self, plan: Plan) -> None:
        backing = self.backing
        assert backing is not None
        await run_all(
            backing.read_into([fill.buffer], fill.pos)
            for fill in plan.fills
            if not backing.try_read_into([fill.buffer], fill.pos)
        )

    async def _write(self, plan: Plan, ordered: bool) -> None:
        storage, grow_to = self._storage, self._allocator.end_of_file
        linking = [*plan.l2_writes(new=False), *(plan.l1_writes() if plan.new_tables else ())]
        if plan.new_tables or (ordered and plan.has_new_data):
            first = [*plan.data, *plan.l2_writes(new=True)]
            await storage.write_many(first, grow_to=grow_to)
            await self._flush()
            await self._link(plan, linking, 0)
        else:
            await self._link(plan, [*plan.data, *linking], grow_to)

    async def _link(self, plan: Plan, writes: list[Write], grow_to: int) -> None:
        """The writes that make the group reachable; undone if one fails."""
        try:
            await self._storage.write_many(writes, grow_to=grow_to)
        except QEDError:
            if plan.updates:
                await self._undo(plan)
            raise
        except BaseException as error:  # the loop is shutting down, or the storage has a bug
            if plan.updates:
                self._fail(error)
            raise

    async def _undo(self, plan: Plan) -> None:
        """Put the old entries back; a slice read meanwhile may hold new ones, so it goes."""
        writes = plan.l2_writes(new=False, old_content=True)
        if plan.new_tables:
            writes = [*plan.l1_writes(old_content=True), *writes]
        try:
            await self._storage.write_many(writes)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._tables.forget(plan.updates)
