"""What a check found, and what a repair did or would do: plain values.

Lists are bounded, for a hostile image can be wrong in millions of places; the counters are exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

__all__ = [
    "CheckResult",
    "Finding",
    "FindingKind",
    "LeakRange",
    "Action",
    "ActionKind",
    "Bounded",
    "LIST_LIMIT",
]

T = TypeVar("T")

LIST_LIMIT = 1000
"""How many findings, actions or leak ranges a result holds at most."""


@dataclass(frozen=True, slots=True)
class LeakRange:
    """Clusters of the file that nothing points to.

    Attributes:
        offset: where in the file, bytes.
        length: bytes, whole clusters.
    """

    offset: int
    length: int


class FindingKind(StrEnum):
    """What is wrong with an entry."""

    INVALID_ENTRY = "invalid-entry"
    """It points outside the file, on the header or on L1, or not at a cluster."""
    SHARED_TABLE = "shared-table"
    """An L2 table lies, wholly or in part, on that of an earlier L1 entry."""
    SHARED_CLUSTER = "shared-cluster"
    """A data cluster that an earlier entry names too, or that is part of an L2 table."""
    READ_ERROR = "read-error"
    """A table could not be read."""
    MOSTLY_LEAKED = "mostly-leaked"
    """The check was cut short: of tens of millions of clusters most are leaked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: what.
        level: 1 for an entry of L1, 2 for one of an L2 table.
        l1_index: the L1 entry, or the one that leads to the L2 table.
        l2_index: the entry of the L2 table, or None.
        value: the entry; for a read error the file offset that was read.
        pos: the guest position the entry is for, bytes.
        text: the same for people.
    """

    kind: FindingKind
    level: int
    l1_index: int
    l2_index: int | None
    value: int
    pos: int
    text: str


class ActionKind(StrEnum):
    """What a repair does."""

    CLEAR_ENTRY = "clear-entry"
    """Set an invalid entry to 0: the guest sees the backing file, or zeroes."""
    CUT_TAIL = "cut-tail"
    """Cut leaked clusters off the end of the file."""
    COPY_TABLE = "copy-table"
    """Give an L1 entry a copy of the L2 table that it shares, and of the clusters named there."""
    COPY_CLUSTER = "copy-cluster"
    """Give an L2 entry a copy of the cluster that it shares; none is needed for all zeroes."""
    CLEAR_NEED_CHECK = "clear-need-check"
    """Mark the image as consistent."""


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a repair.

    Attributes:
        kind: what is done.
        l1_index, l2_index: the entry it is done to, or None.
        offset: the entry's old value, or where the file is cut.
    """

    kind: ActionKind
    l1_index: int | None = None
    l2_index: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check says about an image; after a repair, what was left.

    The counters agree with ``qemu-img check``, but for leaks that it only imagines: it counts one
    too many for each ``cluster_size - 1`` clusters of the file.

    Attributes:
        corruptions: entries that are wrong and were not mended.
        leaks: clusters in the file that nothing points to. Not counted (0) after a read error.
        check_errors: tables that could not be read.
        corruptions_fixed: corruptions mended.
        leaks_fixed: leaked clusters cut off the end of the file; others stay.
        total_clusters: clusters of the guest's disk.
        allocated_clusters: L2 entries that name a data cluster.
        fragmented_clusters: of those, the ones that do not follow the one before.
        image_end_offset: file offset past the last cluster in use.
        need_check: whether NEED_CHECK is set on disk now.
        repaired: whether a repair has changed the file.
        leak_ranges: where the leaks are, in order.
        leak_ranges_omitted: how many ranges did not fit into the list.
        findings: what is, or before a repair was, wrong.
        findings_omitted: how many findings did not fit.
        actions: what a repair would do, or did, in order.
        actions_omitted: how many actions did not fit.
        cut_short: whether the check ended early, at an image so wrong that no repair helps: most of
            a file of many TiB is leaked, and the rest is strewn all over it. That counts as one
            corruption; leaks and doubly used clusters are counted as far as it came.
        read_errno: the host's error number for the first thing that could not be read, or None.
    """

    corruptions: int
    leaks: int
    check_errors: int
    corruptions_fixed: int
    leaks_fixed: int
    total_clusters: int
    allocated_clusters: int
    fragmented_clusters: int
    image_end_offset: int
    need_check: bool
    repaired: bool
    leak_ranges: tuple[LeakRange, ...] = ()
    leak_ranges_omitted: int = 0
    findings: tuple[Finding, ...] = ()
    findings_omitted: int = 0
    actions: tuple[Action, ...] = ()
    actions_omitted: int = 0
    cut_short: bool = False
    read_errno: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the image is safe to use: at most leaks."""
        return not self.corruptions and not self.check_errors

    @property
    def clean(self) -> bool:
        """Whether nothing at all is wrong."""
        return self.ok and not self.leaks

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return asdict(self)


class Bounded(Generic[T]):
    """A list that stops growing and counts on.

    Attributes:
        items: the first ``LIST_LIMIT``.
        omitted: how many came after.
    """

    def __init__(self) -> None:
        self.items: list[T] = []
        self.omitted = 0

    def has_room(self) -> bool:
        """Whether one more fits; if not, it counts as omitted."""
        if len(self.items) < LIST_LIMIT:
            return True
        self.omitted += 1
        return False

    @property
    def room(self) -> int:
        """How many more fit."""
        return LIST_LIMIT - len(self.items)

    def add(self, item: T) -> None:
        """Append, if there is room."""
        if self.has_room():
            self.items.append(item)

    def extend(self, other: Bounded[T]) -> None:
        """Append what is in another one."""
        for item in other.items:
            self.add(item)
        self.omitted += other.omitted
