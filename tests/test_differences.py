"""docs/differences.md: each row names its test, and the test exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    line
    for line in (ROOT / "docs" / "differences.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and not re.match(r"\| (verb)? *\|.*QEMU 7\.2", line)
]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}


def test_differences_are_listed() -> None:
    assert len(ROWS) > 60


@pytest.mark.parametrize("row", ROWS)
def test_difference_has_a_test_that_exists(row: str) -> None:
    named = re.findall(r"`(test_\w+)`", row)
    assert named, row
    assert set(named) <= TESTS, set(named) - TESTS
