"""Interpreters that qualify, and the sides made of them."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from benchmarks import interpreters


def test_find_has_this_one_first_of_its_version() -> None:
    assert interpreters.find()[platform.python_version()] == sys.executable


def test_find_leaves_out_what_lacks_a_dependency_or_is_no_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    poor = tmp_path / "python3.19"
    poor.write_text("#!/bin/sh\nexit 1\n")
    poor.chmod(0o755)
    assert list(interpreters.find([str(tmp_path / "none")]).values()) == [sys.executable]


def test_find_takes_more_and_sorts_by_version(tmp_path: Path) -> None:
    new = tmp_path / "python"
    new.write_text("#!/bin/sh\necho 3.100.1rc1\n")
    new.chmod(0o755)
    assert list(interpreters.find([str(new)]).values())[-1] == str(new)


def test_variants_are_each_interpreter_on_each_loop() -> None:
    sides = interpreters.variants({"3.11.2": "a", "3.12.1": "b"})
    assert [side.name for side in sides] == [
        "qedasync, Python 3.11.2, uvloop",
        "qedasync, Python 3.11.2, asyncio",
        "qedasync, Python 3.12.1, uvloop",
        "qedasync, Python 3.12.1, asyncio",
    ]
