"""What the files around the package promise: version, licence, one-line set-up, types."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
    return table


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_package_types_are_shipped() -> None:
    assert (ROOT / "qedasync" / "py.typed").is_file()


def test_version_has_its_part_in_changelog(project: dict[str, Any]) -> None:
    version = project["version"]
    heading = "Unreleased" if ".dev" in version else version
    assert f"\n## [{heading}]" in read("CHANGELOG.md")


def test_licence_text_is_the_one_named(project: dict[str, Any]) -> None:
    assert project["license"] == "LGPL-2.1-or-later"
    assert "GNU LESSER GENERAL PUBLIC LICENSE\n                       Version 2.1" in read(
        "LICENSE"
    )


@pytest.mark.parametrize("script", ["run-bench", "run-tests"])
def test_readme_script_exists_and_runs_with_sh(script: str) -> None:
    assert f"`sh scripts/{script}`" in read("README.md")
    assert read(f"scripts/{script}").startswith("#!/bin/sh\n")
    assert (ROOT / "scripts" / script).stat().st_mode & stat.S_IXUSR


def test_ci_runs_the_test_script_and_nothing_else() -> None:
    assert read(".ci/run").splitlines()[-1] == "sh scripts/run-tests"


def test_constraints_pin_every_dependency(project: dict[str, Any]) -> None:
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pinned = re.findall(r"^([\w.-]+)==", read("constraints.txt"), re.MULTILINE)
    assert {re.split(r"[>=;]", name)[0] for name in wanted} - set(pinned) == set()
