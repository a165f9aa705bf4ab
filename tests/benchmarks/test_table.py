"""The Markdown tables, and that the documents hold what the kept results make."""

from __future__ import annotations

import pytest

from benchmarks import table, words
from benchmarks.results import Report
from tests.benchmarks.examples import report

needs_kept = pytest.mark.skipif(not table.KEPT.exists(), reason="no results are kept yet")


@needs_kept
@pytest.mark.parametrize("path", list(table.DOCUMENTS), ids=lambda path: path.name)
def test_document_table_is_the_one_that_the_kept_results_make(path: object) -> None:
    text = path.read_text("utf-8")  # type: ignore[attr-defined]
    made = table.DOCUMENTS[path](Report.load(table.KEPT))  # type: ignore[index]
    assert table.updated(text, made) == text


def test_short_table_has_what_is_promised_and_nothing_else() -> None:
    text = table.short_table(report())
    ratios = [words.ratio(value) for value in (2.0, 3.0)]
    assert (
        f"| What read does (`read`) | {ratios[0]} | 1.50 to 4.00 | {' | '.join(ratios)} |" in text
    )
    assert "`write`" not in text
    assert "- Opening (`open`): 3 ms (bar 2)" in text


def test_full_table_has_every_case_by_group() -> None:
    text = table.full_table(report())
    assert text.index("### Reads") < text.index("(`read`)") < text.index("### Writes")
    assert "| 300 /s | 100 /s | slow & <steady> | 2.00\N{MULTIPLICATION SIGN} |" in text
    assert "read@1" not in text


@pytest.mark.parametrize("make", [table.short_table, table.full_table])
def test_table_lines_are_of_one_length(make: object) -> None:
    lines = [line for line in make(report()).splitlines() if line.startswith("|")]  # type: ignore[operator]
    assert len(lines) >= 3
    assert len({line.count("|") for line in lines}) == 1


def test_updated_replaces_what_is_between_the_marks() -> None:
    text = "a\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nb\n"
    once = table.updated(text, "new\n")
    assert once.startswith("a\n")
    assert once.endswith("b\n")
    assert "new" in once
    assert "old" not in once
    assert table.updated(once, "new\n") == once


@pytest.mark.parametrize("text", ["", "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"])
def test_updated_document_without_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="marks"):
        table.updated(text, "new")
