"""The package's face: its public names, in order, and how they come to be there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qedasync
from qedasync import errors


def test_public_names_are_these_in_this_order() -> None:
    names = [name for name in qedasync.__all__ if name not in errors.__all__]
    assert names == [
        "open",
        "create",
        "convert",
        "compare",
        "measure",
        "probe",
        "identify",
        "Image",
        "Opening",
        "open_raw",
        "RawImage",
        "Disk",
        "CheckResult",
        "CopyResult",
        "CompareResult",
        "Measurement",
        "ImageInfo",
        "DiskFacts",
        "BlockingImage",
        "BlockingRaw",
        "Extent",
        "ExtentKind",
        "Stats",
        "Features",
        "BackingRequest",
        "Storage",
        "StorageBase",
        "Write",
        "MemoryStorage",
        "DiskStorage",
        "open_storage",
        "LockRole",
        "Event",
        "parse_size",
        "errors",
    ]


@pytest.mark.parametrize("name", qedasync.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(qedasync, name) is not None


def test_every_error_is_public() -> None:
    classes = {name for name in errors.__all__ if name[0].isupper()}
    assert classes <= set(qedasync.__all__)
    assert qedasync.QEDError is errors.QEDError


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'qedasync' has no attribute 'Imago'"):
        qedasync.Imago  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_the_project_s() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    assert qedasync.__version__ == project["project"]["version"]


@pytest.mark.parametrize(
    "first",
    ["import qedasync.create", "from qedasync.create import create", "from qedasync import create"],
)
def test_module_named_like_a_function_does_not_hide_it(first: str) -> None:
    code = f"{first}; import qedasync; print(type(qedasync.create).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "function\n"


def test_public_names_star_import_gives_all() -> None:
    code = "from qedasync import *; import qedasync; print(set(qedasync.__all__) - set(dir()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
