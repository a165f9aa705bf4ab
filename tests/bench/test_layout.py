"""The JSON beside that of a real fio: every key it has, of the same type, in the same order."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from qedasync.bench import Histogram, Result, Workload
from qedasync.bench.facts import depth_shares, latency_shares
from qedasync.bench.layout import fio_layout
from tests.bench.test_report import make_report

FIO = shutil.which("fio")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What fio says of a few reads and writes."""
    if FIO is None:
        pytest.skip("there is no fio here")
    folder = tmp_path_factory.mktemp("fio")
    command = [
        *(FIO, "--name=bench", "--filename=disk", "--size=256k", "--rw=randrw", "--bs=4k"),
        *("--ioengine=psync", "--fsync=8", "--output-format=json"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ours() -> dict[str, Any]:
    report = make_report(flush_interval=8)
    report.result.flushes.record(5_000_000)
    found: dict[str, Any] = json.loads(json.dumps(report.json()))
    return found


def differences(theirs: Any, mine: Any, where: str = "") -> list[str]:
    """Keys of theirs that mine lacks or has with another type."""
    if type(theirs) is not type(mine):
        return [f"{where}: {type(theirs).__name__} there, {type(mine).__name__} here"]
    if isinstance(theirs, list):
        pairs = zip(theirs, mine, strict=False)
        return [each for there, here in pairs for each in differences(there, here, where)]
    if not isinstance(theirs, dict):
        return []
    found = [f"{where}/{key} is missing" for key in theirs if key not in mine]
    for key in theirs.keys() & mine.keys():
        found += differences(theirs[key], mine[key], f"{where}/{key}")
    return found


OPTIONS = {"filename", "ioengine"}
"""Those of fio's job that stand among the global options here."""


def test_json_has_every_key_of_fio_s_with_its_type(real: dict[str, Any]) -> None:
    for name in OPTIONS:
        real["jobs"][0]["job options"].pop(name, None)
    assert differences(real, ours()) == []


def test_json_has_the_keys_in_fio_s_order(real: dict[str, Any]) -> None:
    mine, theirs = ours()["jobs"][0], real["jobs"][0]
    assert [key for key in mine if key in theirs] == list(theirs)
    assert list(mine["read"]) == list(theirs["read"])
    assert list(mine["trim"]["clat_ns"]) == list(theirs["trim"]["clat_ns"])


def test_json_differences_are_found_at_all(real: dict[str, Any]) -> None:
    mine = ours()
    del mine["jobs"][0]["read"]["clat_ns"]["percentile"]["99.000000"]
    mine["jobs"][0]["usr_cpu"] = 3
    found = differences(real, mine)
    assert any("99.000000 is missing" in each for each in found)
    assert any("usr_cpu: float there, int here" in each for each in found)


def test_latency_shares_are_of_all_operations_and_by_fio_s_bounds() -> None:
    result = Result(Workload())
    for ns in (1, 999, 1000, 1999, 3000, 999_000, 1_010_000, 1_999_000_000, 5_000_000_000):
        result.reads.record(ns)
    result.writes.record(3_500)
    shares = dict(latency_shares(result))
    assert {name: n for name, n in shares["ns"].items() if n} == {"2": 10.0, "1000": 10.0}
    assert {name: n for name, n in shares["us"].items() if n} == {"2": 20, "4": 20, "1000": 10}
    assert {name: n for name, n in shares["ms"].items() if n} == {"2": 10, "2000": 10, ">=2000": 10}


@pytest.mark.parametrize(
    ("depth", "name"), [(1, "1"), (2, "2"), (3, "2"), (63, "32"), (64, ">=64"), (9999, ">=64")]
)
def test_depth_shares_put_all_into_the_depth_s_bucket(depth: int, name: str) -> None:
    assert {key for key, share in depth_shares(depth).items() if share} == {name}


def test_layout_of_an_empty_run_can_be_printed() -> None:
    document = json.loads(json.dumps(fio_layout(Result(Workload()), "1", "disk")))
    assert document["jobs"][0]["read"]["clat_ns"]["N"] == 0
    assert "percentile" not in document["jobs"][0]["read"]["clat_ns"]


def test_histogram_between_counts_below_each_bound() -> None:
    histogram = Histogram()
    for value in (0, 1, 2, 5, 9, 10, 11, 100):
        histogram.record(value)
    assert histogram.between([2, 10]) == [2, 3, 3]
