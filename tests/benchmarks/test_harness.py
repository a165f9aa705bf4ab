"""Rounds: who runs when, on what, and who is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cases import Case
from benchmarks.harness import run_case
from benchmarks.images import Shelf
from benchmarks.process import Failed
from tests.benchmarks.examples import IMAGE, WORK, side

SECOND = "print(1.0)"
HALF = "print(0.5)"


def case(*sides: object, **more: object) -> Case:
    return Case("case", "Group", "What", "Why", WORK, IMAGE, sides, **more)  # type: ignore[arg-type]


def logging(name: str, log: Path) -> str:
    """A program that writes its name and its file's into a log."""
    line = f"'{name} ' + sys.argv[1] + '\\n'"
    return f"import sys; open({str(log)!r}, 'a').write({line}); {HALF}"


def test_run_case_rates_are_requests_over_seconds(tmp_path: Path) -> None:
    row = run_case(
        case(side("rival", "rival", SECOND)), [side("we", "ours", HALF)], 2, Shelf(tmp_path)
    )
    assert row.ours.rates == [200.0, 200.0]
    assert row.ratios == [2.0, 2.0]
    assert row.ours.cpu[0] > 0


def test_run_case_order_turns_round_and_first_round_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    rival = side("rival", "rival", logging("rival", log))
    row = run_case(case(rival), [side("we", "ours", logging("we", log))], 2, Shelf(tmp_path))
    order = [line.split()[0] for line in log.read_text().splitlines()]
    assert order == ["rival", "we", "we", "rival", "rival", "we"]
    assert len(row.ours.rates) == 2


def test_run_case_standing_file_is_shared_and_stays(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run_case(case(), [side("we", "ours", logging("we", log))], 1, Shelf(tmp_path))
    files = {line.split()[1] for line in log.read_text().splitlines()}
    assert len(files) == 1
    assert Path(files.pop()).exists()


def test_run_case_fresh_file_is_new_for_each_run_and_goes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ours = side("we", "ours", logging("we", log))
    run_case(case(fresh=True), [ours], 1, Shelf(tmp_path))
    files = [line.split()[1] for line in log.read_text().splitlines()]
    assert len(set(files)) == 2
    assert not any(Path(file).exists() for file in files)


def test_run_case_rival_that_fails_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = side("broken", "rival", "raise SystemExit('not here')")
    rival = side("rival", "rival", SECOND)
    row = run_case(case(broken, rival), [side("we", "ours", HALF)], 1, Shelf(tmp_path))
    assert [each.name for each in row.sides] == ["we", "rival"]
    assert "not here" in capsys.readouterr().err


def test_run_case_ours_that_fails_raises(tmp_path: Path) -> None:
    with pytest.raises(Failed):
        run_case(case(), [side("we", "ours", "raise SystemExit(1)")], 1, Shelf(tmp_path))


def test_run_case_out_of_time_ends_after_a_round_that_counts(tmp_path: Path) -> None:
    row = run_case(case(), [side("we", "ours", HALF)], 5, Shelf(tmp_path), seconds=0.0)
    assert len(row.ours.rates) == 1
