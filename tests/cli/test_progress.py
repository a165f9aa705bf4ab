"""Progress: qemu-img's line, a bar on a terminal, JSON lines, and one line on SIGUSR1."""

from __future__ import annotations

import io
import json
import os
import signal
import sys

import pytest

from qedasync.cli.options import Parsed, ToolError
from qedasync.cli.progress import Mode, progress, progress_mode


def shown(mode: Mode, capsys: pytest.CaptureFixture[str], *steps: int) -> str:
    """What is on stdout after these steps of a hundred."""
    with progress(mode, "convert") as report:
        for step in steps:
            report(step, 1000)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_progress_off_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("off", capsys, 0, 500, 1000) == ""


def test_progress_to_a_file_is_qemu_img_s_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("bar", capsys, 123, 1000) == (
        "    (0.00/100%)\r    (12.30/100%)\r    (100.00/100%)\r\n"
    )


def test_progress_skips_steps_of_a_percent_or_less(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown("bar", capsys, 1, 10, 11, 20, 22, 1000, 1000)
    assert out.replace("    ", "").split("\r") == [
        "(0.00/100%)", "(1.10/100%)", "(2.20/100%)", "(100.00/100%)", "\n",
    ]  # fmt: skip


def test_progress_on_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    with progress("bar", "convert") as report:
        report(500, 1000)
    assert stream.getvalue().endswith("━" * 20 + " " * 20 + "  50.00 %\n")


def test_progress_as_json_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in shown("json", capsys, 500, 1000).splitlines()]
    assert lines[1:] == [
        {"job": "convert", "done": 500, "total": 1000, "percent": 50.0},
        {"job": "convert", "done": 1000, "total": 1000, "percent": 100.0},
    ]


def test_progress_of_nothing_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("bar", "convert") as report:
        report(0, 0)
    assert "(100.00/100%)" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["off", "json"])
def test_progress_on_sigusr1_prints_one_line(
    mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with progress(mode, "convert") as report:
        report(250, 1000)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert capsys.readouterr().err == "    (25.00/100%)\n"
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ([], "off"),
        ([("p", "")], "bar"),
        ([("progress", "json")], "json"),
        ([("p", ""), ("progress", "off")], "off"),
        ([("p", ""), ("q", "")], "off"),
        ([("progress", "json"), ("q", "")], "off"),
    ],
)
def test_progress_mode_is_what_the_options_ask_for(
    given: list[tuple[str, str]], mode: Mode
) -> None:
    assert progress_mode(Parsed(given)) == mode


def test_progress_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ToolError):
        progress_mode(Parsed([("progress", "xml")]))
