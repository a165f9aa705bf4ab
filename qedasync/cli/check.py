"""``qedasync check``: look an image over, and mend it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qedasync.cli.common import (
    BACKING,
    CACHES,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    QUIET,
    as_json,
    cache_word,
    one_name,
    open_named,
    refuse_object,
    wants_json,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse

if TYPE_CHECKING:
    from qedasync import CheckResult

__all__ = ["VERB", "main"]

VERB = Verb(
    name="check",
    summary="look an image over, and mend it",
    names="FILENAME",
    options=(
        FORMAT,
        QUIET,
        Option(
            "r",
            "repair",
            "WHAT",
            "mend it: leaks cuts off clusters that nothing uses, all mends everything",
            ("leaks", "all"),
        ),
        Option("T", "", "CACHE", "how the image is read", CACHES),
        OUTPUT,
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Looks at every entry of the image's tables. Corruptions are entries that cannot be right: the
    image must not be written. Leaks are clusters that nothing uses, and do no harm.

    A repair copies clusters that two entries name, clears entries that point nowhere, and cuts
    leaks off the end of the file. -r leaks does only the last, and only if nothing else is wrong.

    The exit code is 0 if all is well (now), 1 if the check failed, 2 for corruptions, 3 for leaks
    only, 63 if the format has nothing to check.
    """,
    examples=(
        Example("qedasync check disk.qed", "What is wrong with it"),
        Example("qedasync check -r all disk.qed", "Mend what is wrong"),
        Example("qedasync check --output=json disk.qed", "The counters, for a program"),
    ),
)

CORRUPT, LEAKY, NO_CHECK = 2, 3, 63
"""Exit codes."""


def main(words: Sequence[str]) -> int:
    """Run ``qedasync check``; answers the exit code."""
    from qedasync.cli.run import run_early

    parsed = parse(VERB, words)
    refuse_object(parsed)
    repair = parsed.last("r")
    if repair not in (None, "leaks", "all"):
        raise ToolError(f"Unknown option value for -r (expecting 'leaks' or 'all'): {repair}")
    name, in_json = one_name(parsed), wants_json(parsed)
    fmt, result = run_early(lambda at_once: _check(parsed, name, repair, at_once=at_once))
    if result.check_errors:
        why = f": {os.strerror(result.read_errno)}" if result.read_errno else ""
        raise ToolError(f"Check failed{why}")
    if not parsed.has("q"):
        print(as_json(_facts(name, fmt, result)) if in_json else "\n".join(_lines(result)))
    return CORRUPT if result.corruptions else LEAKY if result.leaks else 0


async def _check(
    parsed: Parsed, name: str, repair: str | None, *, at_once: bool
) -> tuple[str, CheckResult]:
    """The image's format, and what is wrong with it, after the repair if there is one."""
    from qedasync.cli.nodes import LoopNeeded

    if at_once and repair is not None:
        raise LoopNeeded
    node = await open_named(
        parsed,
        name,
        writable=repair is not None,
        cache=cache_word(parsed, "T", "source cache"),
        check=False,
        at_once=at_once,
    )
    try:
        check = getattr(node.disk, "check", None)
        if check is None:
            raise ToolError("This image format does not support checks", NO_CHECK)
        result = await _checked(check, repair)
    finally:
        await node.close()
    return node.format, result


async def _checked(check: Any, repair: str | None) -> CheckResult:
    """Differs from QEMU: it mends corruptions for ``-r leaks``, too, and leaks never."""
    result: CheckResult
    if repair != "all":
        result = await check()
        if repair is None or not result.ok:
            return result
    result = await check(repair=True)
    return result


def _facts(name: str, fmt: str, result: CheckResult) -> dict[str, Any]:
    """What qemu-img says in JSON, in its order; counters that are 0 are left out."""
    counters = {
        "total-clusters": result.total_clusters,
        "corruptions": result.corruptions,
        "corruptions-fixed": result.corruptions_fixed,
        "check-errors": result.check_errors,
        "leaks": result.leaks,
        "leaks-fixed": result.leaks_fixed,
        "allocated-clusters": result.allocated_clusters,
        "filename": name,
        "format": fmt,
        "fragmented-clusters": result.fragmented_clusters,
    }
    return {key: value for key, value in counters.items() if value or key == "check-errors"}


def _lines(result: CheckResult) -> Iterator[str]:
    if result.corruptions_fixed or result.leaks_fixed:
        yield "The following inconsistencies were found and repaired:"
        yield ""
        yield f"    {result.leaks_fixed} leaked clusters"
        yield f"    {result.corruptions_fixed} corruptions"
        yield ""
        yield "Double checking the fixed image now..."
    if result.clean:
        yield "No errors were found on the image."
    if result.corruptions:
        yield ""
        yield f"{result.corruptions} errors were found on the image."
        yield "Data may be corrupted, or further writes to the image may corrupt it."
    if result.leaks:
        yield ""
        yield f"{result.leaks} leaked clusters were found on the image."
        yield "This means waste of disk space, but no harm to data."
    total, allocated = result.total_clusters, result.allocated_clusters
    if total and allocated:
        yield (
            f"{allocated}/{total} = {100 * allocated / total:.2f}% allocated,"
            f" {100 * result.fragmented_clusters / allocated:.2f}% fragmented,"
            " 0.00% compressed clusters"
        )
