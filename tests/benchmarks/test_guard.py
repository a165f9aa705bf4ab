"""The guard: what is dearer than it was is told; what is cheaper or new is not held against us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import cases, guard


@pytest.mark.parametrize(
    ("cost", "kept", "within"),
    [
        (10.0, 10.0, True),
        (11.0, 10.0, True),
        (11.1, 10.0, False),
        (5.0, 10.0, True),
        (9.0, None, True),
    ],
)
def test_verdict_is_about_what_became_dearer(cost: float, kept: float | None, within: bool) -> None:
    assert guard.Verdict("read", cost, kept).within(0.10) is within


def test_verdict_line_tells_the_change() -> None:
    assert "+20.0% SLOWER" in guard.Verdict("read", 12.0, 10.0).line(0.1)
    assert "-20.0% ok" in guard.Verdict("read", 8.0, 10.0).line(0.1)
    assert "nothing is kept" in guard.Verdict("read", 8.0, None).line(0.1)


def test_kept_costs_are_of_paths_that_there_are() -> None:
    kept = json.loads(guard.KEPT.read_text("utf-8"))
    assert set(guard.PATHS) <= {case.name for case in cases.CASES}
    assert "3.11" in kept
    for costs in kept.values():
        assert set(costs) <= set(guard.PATHS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    not (shutil.which("valgrind") and shutil.which("qemu-img")), reason="needs valgrind, qemu-img"
)
def test_guard_hot_paths_cost_what_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard.main([]) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    not (shutil.which("valgrind") and shutil.which("qemu-img")), reason="needs valgrind, qemu-img"
)
def test_guard_stores_what_it_measures_and_fails_when_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "guard.json"
    kept.write_text("{}")
    monkeypatch.setattr(guard, "KEPT", kept)
    assert guard.main(["read-4k", "--store"]) == 0
    (costs,) = json.loads(kept.read_text()).values()
    assert costs["read-4k"] > 1
    assert guard.main(["read-4k", "--tolerance=-0.9"]) == 1
