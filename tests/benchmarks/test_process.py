"""Children: what they say, what they use, and how they fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.process import Failed, run, run_together


def test_run_child_that_works_tells_output_processor_time_and_memory() -> None:
    program = "import sys, time; data = bytearray(b'x') * (1 << 25); time.sleep(0.2);"
    ended = run([sys.executable, "-c", program + "print(sys.stdin.read())"], "hello")
    assert ended.stdout == "hello\n"
    assert 0 < ended.cpu
    assert 0.2 <= ended.seconds
    assert ended.memory > 1 << 25


def test_run_child_memory_is_not_ours() -> None:
    ours = bytearray(b"x") * (1 << 28)
    ended = run([sys.executable, "-c", "import time; time.sleep(0.2)"])
    assert 0 < ended.memory < len(ours)


def test_run_child_that_fails_raises_what_it_said() -> None:
    with pytest.raises(Failed, match="no such luck"):
        run([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_run_program_that_is_not_there_raises() -> None:
    with pytest.raises(Failed, match="no-such-program"):
        run(["no-such-program"])


def test_run_together_children_run_beside_each_other(tmp_path: Path) -> None:
    meet = "import os, sys, time\nopen(sys.argv[1], 'w').close()\n"
    meet += "while not os.path.exists(sys.argv[2]): time.sleep(0.01)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    commands = [[sys.executable, "-c", meet, *pair] for pair in ((a, b), (b, a))]
    assert len(run_together(commands)) == 2
