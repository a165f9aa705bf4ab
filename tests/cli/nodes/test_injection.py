"""Events of an image over blkdebug, beside qemu-io: the same step fails, and what then does.

Each scenario is a few commands of ``qemu-io``; each event gets a rule for one request and one for
all. Where ours goes another way than QEMU's driver on purpose, the row says why.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.differential import Outcome, Twins
from tests.cli.nodes import images
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2

EVENTS = (
    "l1_update", "l2_load", "l2_update", "l2_alloc_write", "read_aio", "read_backing_aio",
    "write_aio", "cow_read", "cow_write", "cluster_alloc", "flush_to_os", "flush_to_disk",
    "pwritev_rmw_head", "pwritev", "pwritev_zero", "pwritev_done", "none",
)  # fmt: skip

SCENARIOS = {
    "alloc": ("a.qed", "write -P 9 128k 4k", "read -P 9 128k 4k", "write -P 8 128k 4k"),
    "whole": ("a.qed", "write -P 9 128k 64k", "read -P 9 128k 64k"),
    "in place": ("a.qed", "write -P 9 4k 4k", "read -P 9 4k 4k", "read -P 2 0 4k"),
    "read": ("a.qed", "read -P 2 0 4k", "read -P 0 512k 4k", "read -P 2 0 4k"),
    "zero": ("a.qed", "write -z 0 64k", "read 0 64k", "write -z 256k 64k", "write -z 4k 4k"),
    "table": ("inner.qed", "write -P 9 0 4k", "read -P 9 0 4k", "write -P 7 64k 64k"),
    "overlay": ("ov.qed", "read 0 4k", "write -P 9 4k 4k", "read -P 9 4k 4k",
                "write -P 9 128k 64k", "read 512k 4k"),
    "raw": ("base.raw", "write -P 9 4k 4k", "read -P 9 4k 4k", "write -z 64k 64k",
            "write -z 0 64k", "read 512k 4k"),
}  # fmt: skip
"""Name -> the file, and what is done."""

_ROLLED_BACK = "the old mapping stands after a failed table write (Q10)"
_RELOADED = (
    "a slice is loaded again after a failed write, and when its table is new: l2_load happens"
)
_FAILED = (
    "after a failed flush nothing more is written; and NEED_CHECK is flushed, first of all (Q7)"
)

DIFFERENT = {
    _ROLLED_BACK: (
        "alloc l2_update on",
        "whole l2_update on",
        "overlay l2_update on",
        "overlay l2_update off",
        "table l1_update on",
        "table l1_update off",
    ),
    _RELOADED: (
        "alloc write_aio off",
        "alloc cow_write off",
        "whole write_aio off",
        "table l2_load on",
        "table l2_load off",
    ),
    _FAILED: (
        "alloc flush_to_os on",
        "alloc pwritev_done on",
        "zero flush_to_os on",
        "zero flush_to_disk on",
        "zero pwritev_done on",
        "table flush_to_os on",
        "table pwritev_done on",
        "overlay flush_to_os on",
        "raw flush_to_os on",
        "raw flush_to_disk on",
        "raw pwritev_done on",
    ),
}
"""Why ours says something else than qemu-io -> scenario, event, once; docs/differences.md has the
reasons, too."""

REASONS = {point: reason for reason, points in DIFFERENT.items() for point in points}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events") / "originals"
    folder.mkdir()
    images.build(folder)
    return folder


def points() -> Iterator[object]:
    """All scenarios and events, with either spacing in turn; the other one is slow."""
    spacings = itertools.cycle(["on", "off", "off", "on"])
    for scenario, event in itertools.product(SCENARIOS, EVENTS):
        yield pytest.param(scenario, event, next(spacings))
        yield pytest.param(scenario, event, next(spacings), marks=pytest.mark.slow)


@pytest.mark.parametrize(("scenario", "event", "once"), list(points()))
def test_rule_fails_the_requests_that_it_fails_in_qemu(
    scenario: str, event: str, once: str, originals: Path, tmp_path: Path
) -> None:
    file, *commands = SCENARIOS[scenario]
    rule = f"file.inject-error.0.event={event},file.inject-error.0.once={once}"
    driver = "raw" if scenario == "raw" else "qed"
    below = f"file.driver=blkdebug,file.image.driver=file,file.image.filename={file}"
    words = ["--image-opts", f"driver={driver},{below},{rule}"]
    for command in commands:
        words += ["-c", command]
    twins = Twins(tmp_path, originals)
    real, ours = (call(words, tool="qemu-io") for call in (twins.theirs, twins.ours))
    said = f"\n{words}\nreal: {real}\nours: {ours}"
    reason = REASONS.get(f"{scenario} {event} {once}")
    if reason is None:
        assert lines(ours) == lines(real), said
    else:
        assert lines(ours) != lines(real), f"they agree: no difference is left in that {reason}"
    assert ours.err.count("\n") <= 1, said
    if driver == "qed":
        assert qemu.check(twins.mine / file)["corruptions"] == 0, said


def lines(outcome: Outcome) -> list[str]:
    """What each command said, without times; of a failed flush or close QEMU says nothing."""
    told = [
        line
        for line in outcome.out.splitlines()
        if "ops; " not in line and not line.startswith("flush failed")
    ]
    if "Could not close" not in outcome.err:
        told += outcome.err.splitlines()[:1]
    return [re.sub(r"block node '#block\d+'", "block node", line) for line in told]


COMMON = "driver=qed,file.driver=blkdebug,file.image.driver=file,file.image.filename=a.qed,"

RULES = (
    "file.config=rules.conf",
    "file.config=all.conf",
    "file.inject-error.0.event=none,file.inject-error.0.sector=0",
    "file.inject-error.0.event=none,file.inject-error.0.sector=128",
    "file.inject-error.0.event=none,file.inject-error.0.sector=640",
    "file.inject-error.0.event=none,file.inject-error.0.iotype=write",
    "file.inject-error.0.event=none,file.inject-error.0.iotype=flush",
    "file.inject-error.0.event=none,file.inject-error.0.iotype=discard",
    "file.inject-error.0.event=none,file.inject-error.0.iotype=block-status",
    "file.inject-error.0.event=none,file.inject-error.0.iotype=read,"
    "file.inject-error.0.sector=640,file.inject-error.0.errno=28",
    "file.inject-error.0.event=read_aio,file.inject-error.0.errno=28,"
    "file.inject-error.0.immediately=on,file.inject-error.0.once=on",
    "file.inject-error.0.event=read_aio,file.inject-error.0.state=2,"
    "file.set-state.0.event=write_aio,file.set-state.0.new_state=2",
    "file.inject-error.0.event=read_aio,file.inject-error.0.state=2,"
    "file.set-state.0.event=read_aio,file.set-state.0.new_state=2",
    "file.inject-error.0.event=read_aio,file.inject-error.1.event=write_aio,"
    "file.inject-error.1.errno=28",
    "file.inject-error.0.event=read_aio,file.inject-error.0.errno=0",
    "file.align=4096,file.inject-error.0.event=pwritev_rmw_head",
    "file.align=65536,file.inject-error.0.event=pwritev_rmw_head",
    "file.align=65536,file.inject-error.0.event=pwritev_rmw_tail",
    "file.align=65536,file.inject-error.0.event=none,file.inject-error.0.sector=641",
)


@pytest.mark.parametrize("rules", RULES)
def test_rules_of_every_kind_do_what_they_do_in_qemu(
    rules: str, originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    words = ["--image-opts", COMMON + rules]
    for command in ("read 0 4k", "write -P 3 8k 512", "read 0 4k", "read 8k 512", "flush"):
        words += ["-c", command]
    real, ours = (call(words, tool="qemu-io") for call in (twins.theirs, twins.ours))
    said = f"\n{words}\nreal: {real}\nours: {ours}"
    assert lines(ours) == lines(real), said
