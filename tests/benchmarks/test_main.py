"""The command: what it takes, what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import session, table
from benchmarks.__main__ import main
from benchmarks.results import Report
from benchmarks.sweeps import SWEEPS
from tests.benchmarks.examples import report, row

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


def test_main_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["read-4k", "no-such-case"])
    assert "no such case: no-such-case" in capsys.readouterr().err


def test_main_without_qemu_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit):
        main(["read-4k"])
    assert "qemu-img" in capsys.readouterr().err


def test_main_report_makes_a_page_from_a_file(tmp_path: Path) -> None:
    results, html = tmp_path / "results.json", tmp_path / "report.html"
    results.write_text(report().as_json())
    assert main(["report", str(results), "--html", str(html)]) == 0
    assert html.read_text().startswith("<!DOCTYPE html>")


def test_main_report_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    results.write_text(report().as_json())
    assert main(["report", str(results)]) == 0
    assert capsys.readouterr().out == table.full_table(report()) + "\n"


def test_main_report_updates_documents_and_keeps_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, document, kept = (tmp_path / name for name in ("new.json", "README.md", "kept.json"))
    results.write_text(report().as_json())
    document.write_text("<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\n")
    monkeypatch.setattr(table, "DOCUMENTS", {document: table.short_table})
    monkeypatch.setattr(table, "KEPT", kept)
    assert main(["report", str(results), "--update-docs"]) == 0
    assert "What read does" in document.read_text()
    assert kept.read_text() == results.read_text()


def test_names_quick_is_what_is_promised_and_full_is_all() -> None:
    quick, default, full = (session.names(extent) for extent in ("quick", "default", "full"))
    assert "alloc-4k" in quick
    assert "cow-4k" not in quick
    assert set(quick) < set(default) < set(full)
    assert {sweep.name for sweep in SWEEPS} <= set(full)
    assert set(session.expanded("jobs")) <= set(default)


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_sweep_case_has_a_name_for_each_value(sweep: object) -> None:
    cases = [sweep.case(value) for value in sweep.values]  # type: ignore[attr-defined]
    assert len({case.name for case in cases}) == len(cases)


def test_sweep_figure_has_a_curve_for_each_kind_of_side() -> None:
    sweep = SWEEPS[0]
    figure = sweep.figure([row() for _ in sweep.values])
    assert [curve.name for curve in figure.curves] == ["qedasync", "QEMU's best", "bare"]
    assert figure.curves[0].points[0] == (1.0, 300.0)


@needs_qemu
def test_session_runs_a_case_and_tells_of_it(tmp_path: Path) -> None:
    said: list[str] = []
    plan = session.Plan(["flush-1"], rounds=1, divisor=500, directory=tmp_path, warm_up=0)
    found = session.run(plan, said.append)
    assert [each.name for each in found.rows] == ["flush-1"]
    assert found.rows[0].ratio is not None
    assert said[-1].startswith("flush-1")
    assert "processor" in found.about
    assert json.loads(found.as_json())["rows"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not table.KEPT.exists(), reason="no results are kept yet")
def test_kept_results_load_and_are_whole() -> None:
    kept = Report.load(table.KEPT)
    assert {each.name for each in kept.headline()} >= {"read-4k", "alloc-4k", "writethrough-4k"}
