"""The two forms of a report say the same, in fio's words where fio has some."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import qedasync
from qedasync.bench import Pattern, Report, Result, Workload, format_size


def make_report(**options: Any) -> Report:
    """1000 reads of 1 us to 1 ms and 10 writes of 2 ms, in two seconds."""
    workload = Workload(**options).fitted(1 << 30)
    result = Result(workload, elapsed_ns=2_000_000_000, overhead_ns=400.0)
    for n in range(1, 1001):
        result.reads.record(n * 1000)
    for _ in range(10):
        result.writes.record(2_000_000)
    return Report(
        result=result,
        image="disk.qed",
        image_size=1 << 30,
        cluster_size=65536,
        allocated=0.25,
        stats=qedasync.Stats(inline_reads=900, reads=100, groups=3, grouped_writes=9),
        loop="uvloop",
        storage="auto",
        cache="writeback",
    )


def test_json_has_fio_s_keys_and_the_right_numbers() -> None:
    report = json.loads(json.dumps(make_report().json()))
    job = report["jobs"][0]
    assert job["job options"]["rw"] == "randrw"
    assert job["job options"]["bs"] == "4096"
    assert job["read"]["total_ios"] == job["read"]["lat_ns"]["N"] == 1000
    assert job["read"]["iops"] == pytest.approx(500)
    assert job["read"]["io_bytes"] == 1000 * 4096
    assert job["read"]["bw_bytes"] == 500 * 4096
    assert job["read"]["bw"] == 500 * 4
    assert job["read"]["runtime"] == job["job_runtime"] == 2000
    assert job["read"]["lat_ns"]["max"] == 1_000_000
    assert job["read"]["lat_ns"]["percentile"]["99.000000"] == pytest.approx(990_000, rel=1 / 64)
    assert job["write"]["total_ios"] == 10
    assert job["write"]["lat_ns"]["mean"] == pytest.approx(2_000_000, rel=1 / 64)


def test_json_has_what_fio_lacks_apart() -> None:
    ours = make_report().json()["qedasync"]
    assert ours["stats"]["inline_reads"] == 900
    assert ours["allocated_before"] == 0.25
    assert ours["loop_delay_ns"]["N"] == 0
    assert ours["interrupted"] is False


def test_human_names_rates_percentiles_and_counters() -> None:
    text = make_report().human()
    assert "disk.qed, qed, 1 GiB, clusters of 64 KiB, 25% allocated before" in text
    assert "\nread        500 IOPS, 2 MiB/s, p50 " in text
    assert "5 IOPS, 20 KiB/s, p50 2 ms, p90 2 ms, p99 2 ms, p99.9 2 ms, max 2 ms" in text
    assert "90.0% of reads inline" in text
    assert "9 allocating writes in 3 groups" in text
    assert "takes 400 ns an operation, 0.0% of the run" in text
    assert "interrupted" not in text
    assert "verified" not in text


def test_human_leaves_out_what_was_not_run() -> None:
    report = make_report(rw=Pattern.RANDREAD)
    report = replace(report, result=replace(report.result, writes=Result(Workload()).writes))
    assert "\n  read: IOPS=" in report.human()
    assert "write" not in report.human().replace("cache writeback", "").replace("ing writes", "")
    assert "rw=randread, bs" in report.human()


def test_human_says_that_it_was_interrupted_or_verified() -> None:
    report = make_report(verify=True)
    report.result.interrupted, report.result.verified = True, 12345
    assert "interrupted these are the results so far" in report.human()
    assert "12,345 reads" in report.human()


def test_report_of_a_run_interrupted_at_once_can_be_printed() -> None:
    report = replace(make_report(), result=Result(Workload().fitted(1 << 20), interrupted=True))
    assert "bench: (groupid=0, jobs=1)" in report.human()
    assert report.json()["jobs"][0]["read"]["iops"] == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 << 30, "10 GiB"),
        ((1 << 63) - 1, "8 EiB"),
        (1 << 70, "1024 EiB"),
    ],
)
def test_format_size_names_the_unit(size: int, text: str) -> None:
    assert format_size(size) == text
