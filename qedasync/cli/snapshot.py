"""``qedasync snapshot``: internal snapshots, which neither QED nor raw has."""

from __future__ import annotations

from collections.abc import Sequence

from qedasync.cli.common import (
    BACKING,
    FORCE_SHARE,
    IMAGE_OPTS,
    OBJECT,
    QUIET,
    one_name,
    open_named,
    refuse_object,
)
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb, parse

__all__ = ["VERB", "main"]

VERB = Verb(
    name="snapshot",
    summary="list internal snapshots: there are none in QED",
    names="FILENAME",
    options=(
        Option("l", "", "", "list them; prints nothing"),
        Option("c", "", "NAME", "make one; refused"),
        Option("a", "", "NAME", "go back to one; refused"),
        Option("d", "", "NAME", "delete one; refused"),
        QUIET,
        FORCE_SHARE,
        IMAGE_OPTS,
        OBJECT,
        BACKING,
    ),
    text="""\
    Neither QED nor raw has snapshots inside the file. An overlay does the same from outside: see
    'qedasync help create'.
    """,
    examples=(Example("qedasync snapshot -l disk.qed", "The snapshots: none"),),
)

_REFUSALS = {
    "c": "Could not create snapshot '{}': -95 (Operation not supported)",
    "a": "Could not apply snapshot '{}': Block driver does not support snapshots",
    "d": "Could not delete snapshot '{}': snapshot not found",
}


def main(words: Sequence[str]) -> int:
    """Run ``qedasync snapshot``; answers the exit code."""
    from qedasync.cli.run import run_early

    parsed = parse(VERB, words)
    refuse_object(parsed)
    actions = [(key, value) for key, value in parsed.given if key in ("l", *_REFUSALS)]
    if len(actions) > 1:
        raise ToolError("Cannot mix '-l', '-a', '-c', '-d'")
    name = one_name(parsed)
    key, value = actions[0] if actions else ("l", "")
    run_early(lambda at_once: _look(parsed, name, changes=key != "l", at_once=at_once))
    if key != "l":
        raise ToolError(_REFUSALS[key].format(value))
    return 0


async def _look(parsed: Parsed, name: str, *, changes: bool, at_once: bool) -> None:
    """Whether it is an image that can be opened; it is not written."""
    if changes and parsed.has("force-share"):
        raise ToolError(
            f"Could not open '{name}': force-share=on can only be used with read-only images"
        )
    await (await open_named(parsed, name, at_once=at_once)).close()
