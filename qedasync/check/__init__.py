"""Check and repair: every table entry is looked at, and what is wrong is counted or mended.

``result`` is what a check says; ``marks`` remembers which clusters are in use; ``reader`` gets the
tables from the storage; ``scan`` judges entries; ``survey`` walks the whole image and counts, if a
``glance`` does not see that all is well; ``repair`` mends. Stands on the engine's parts and works
below its methods: a check holds the allocating turn, a repair has the image to itself.
"""

from qedasync.check.image import check_image, look_over
from qedasync.check.result import (
    Action,
    ActionKind,
    CheckResult,
    Finding,
    FindingKind,
    LeakRange,
)

__all__ = [
    "check_image",
    "look_over",
    "CheckResult",
    "Finding",
    "FindingKind",
    "LeakRange",
    "Action",
    "ActionKind",
]
