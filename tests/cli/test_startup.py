"""An early start: what ``--version``, ``help`` and ``info`` import, and what they must not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"aiofiles", "argparse", "asyncio", "html", "json", "rich", "ssl", "unittest", "uvloop"}


def imported(words: list[str], folder: Path) -> set[str]:
    """The modules that a command has loaded at its end."""
    code = (
        "import sys; from qedasync.cli.main import main; code = main(sys.argv[1:]);"
        "print('\\n', *sys.modules, file=sys.stderr); raise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--version"], ["help"], ["help", "convert"], ["info", "-h"]])
def test_help_and_version_need_no_heavy_module(words: list[str], tmp_path: Path) -> None:
    modules = imported(words, tmp_path)
    assert modules & HEAVY == set()
    assert len(modules) < 130


def test_version_needs_next_to_nothing(tmp_path: Path) -> None:
    ours = {name for name in imported(["--version"], tmp_path) if name.startswith("qedasync")}
    assert ours <= {
        "qedasync",
        "qedasync.errors",
        "qedasync.cli",
        "qedasync.cli.main",
        "qedasync.cli.options",
        "qedasync.cli.run",
    }


def test_info_loads_no_more_than_it_needs(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(bytes(512))
    modules = imported(["info", "x.raw"], tmp_path)
    assert modules & {"aiofiles", "argparse", "json", "rich", "uvloop"} == set()
    assert not any(name.startswith(("qedasync.jobs", "qedasync.bench")) for name in modules)
