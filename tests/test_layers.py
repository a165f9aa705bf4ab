"""The layers of the package, read from its imports: lower never imports higher.

Modules that do not exist break no rule. Imports are found wherever they stand, also in functions
and under ``TYPE_CHECKING``: an annotation ties two modules together as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS: list[set[str]] = [
    {"errors", "events", "turns", "units", "waiting"},
    {"format", "storage"},
    {"engine"},
    {"backing", "backing_gate", "blocking", "chain", "check", "create", "disk", "facts", "policy"},
    {"image", "raw"},
    {"", "jobs"},  # qedasync/__init__.py, the public names; jobs stand on the others
    {"bench", "cli", "nbd", "__main__"},
]
"""Names in ``qedasync`` from low to high; one set's may know each other, or are ``APART``."""

APART = [{"format", "storage"}]
"""Neighbours that do not know each other."""

PURE = "format"
IMPURE = {"aiofiles", "asyncio", "os", "uvloop", "waiting"}
"""What ``format`` must do without: it turns bytes into values and back."""

USERS = {"bench", "benchmarks", "cli", "jobs", "nbd"}
"""What uses nothing but public names: ``qedasync``, ``qedasync.errors`` and itself."""

FACES = {"benchmarks": {"bench", "nbd"}, "cli": {"bench", "jobs", "nbd"}}
"""Public packages that a user of public names may stand on as well."""

FUNCTIONS = {"check", "compare", "convert", "create", "measure", "probe"}
"""Modules named like a public function: ``from qedasync import create`` means the function."""


@dataclass(frozen=True)
class Import:
    """One imported module, or name of a module.

    Attributes:
        where: file and line, for people.
        importer: the importing module, dotted.
        target: what is imported, dotted, relative imports made absolute.
    """

    where: str
    importer: str
    target: str


def imports(root: Path) -> Iterator[Import]:
    """Every import in ``qedasync`` and ``benchmarks`` below ``root``."""
    for top in ("qedasync", "benchmarks"):
        for path in sorted((root / top).rglob("*.py")):
            yield from imports_of(path, root)


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """The imports of one file; ``from a import b`` is ``a.b``, or ``a`` for a public function."""
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    package = parts[:-1]
    importer = ".".join(package if parts[-1] == "__init__" else parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = [*above, *([node.module] if node.module else [])]
            public = FUNCTIONS if source == ["qedasync"] else set()
            names = [[] if alias.name in public else [alias.name] for alias in node.names]
            targets = [".".join(source + name) for name in names]
        else:
            continue
        for target in targets:
            yield Import(f"{relative}:{node.lineno}", importer, target)


def component(module: str) -> str | None:
    """What a dotted name belongs to: a name of ``LAYERS``, "benchmarks", or None for strangers.

    A public name, as in ``qedasync.Image``, belongs to the package's face, "".
    """
    top, _, rest = module.partition(".")
    if top != "qedasync":
        return top if top == "benchmarks" else None
    name = rest.partition(".")[0]
    return name if any(name in layer for layer in LAYERS) else ""


def layer_of(name: str) -> int:
    """How high a component stands; benchmarks stand above the package."""
    return next((height for height, layer in enumerate(LAYERS) if name in layer), len(LAYERS))


def fault(found: Import) -> str | None:
    """Why an import breaks a rule, or None."""
    source, target = component(found.importer), component(found.target)
    if source == PURE and {found.target.partition(".")[0], target} & IMPURE:
        return f"{PURE} is pure and does without {found.target}"
    if source is None or target is None or source == target:
        return private_fault(found)
    if layer_of(target) > layer_of(source):
        return f"{source or 'qedasync'} is below {target or 'qedasync'}"
    if {source, target} in APART:
        return f"{source} and {target} do not know each other"
    if source in USERS and target not in {"", "errors"} | FACES.get(source, set()):
        return f"{source} uses public names only"
    return private_fault(found)


def private_fault(found: Import) -> str | None:
    """Why the import of a ``_name`` of another of our modules is a fault, or None."""
    ours = found.target.partition(".")[0] in {"qedasync", "benchmarks"}
    names = found.target.split(".")
    private = [name for name in names if name.startswith("_") and not name.startswith("__")]
    return f"{private[0]} is private to its module" if ours and private else None


def faults(root: Path) -> list[str]:
    """Every broken rule below ``root``, with its place."""
    return [f"{found.where}: {why}" for found in imports(root) if (why := fault(found))]


def test_package_imports_keep_the_layers() -> None:
    assert faults(ROOT) == []


def test_package_modules_all_have_a_layer() -> None:
    names = {path.stem for path in (ROOT / "qedasync").glob("*.py")} - {"__init__"}
    names |= {path.parent.name for path in (ROOT / "qedasync").glob("*/__init__.py")}
    assert names - set().union(*LAYERS) == set()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("qedasync/engine/tables.py", "from qedasync.image import Image"),
        ("qedasync/engine/tables.py", "from ..image import Image"),
        ("qedasync/engine/__init__.py", "from .. import image"),
        ("qedasync/errors.py", "import qedasync.format.header"),
        ("qedasync/format/header.py", "from qedasync.storage import base"),
        ("qedasync/storage/posix.py", "def f():\n    from qedasync.format import Header"),
        ("qedasync/image.py", "from qedasync import open"),
        ("qedasync/engine/write.py", "from qedasync import create"),
        ("qedasync/format/header.py", "import asyncio"),
        ("qedasync/format/header.py", "from os import path"),
        ("qedasync/format/header.py", "from qedasync.waiting import Settled"),
        ("qedasync/cli/main.py", "from qedasync.engine import tables"),
        ("qedasync/nbd/server.py", "from qedasync import image"),
        ("qedasync/jobs/convert.py", "from qedasync.image import Image"),
        ("qedasync/cli/main.py", "from qedasync.create import create"),
        ("qedasync/bench/runner.py", "from qedasync.storage.posix import PosixStorage"),
        ("benchmarks/harness.py", "from qedasync.engine import core"),
        ("qedasync/engine/write.py", "from qedasync.engine.tables import _find"),
        ("qedasync/engine/write.py", "from . import _tables"),
        ("qedasync/cli/main.py", "from qedasync import _helper"),
    ],
)
def test_checker_forbidden_import_is_found(tmp_path: Path, path: str, line: str) -> None:
    place(tmp_path, path, line)
    assert len(faults(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("qedasync/engine/tables.py", "from qedasync.format.header import Header"),
        ("qedasync/engine/tables.py", "from . import allocator"),
        ("qedasync/storage/posix.py", "import asyncio, os"),
        ("qedasync/storage/posix.py", "from ..errors import StorageError"),
        ("qedasync/format/header.py", "from __future__ import annotations"),
        ("qedasync/__init__.py", "from .image import Image"),
        ("qedasync/cli/main.py", "import qedasync\nfrom qedasync import Image, errors"),
        ("qedasync/cli/main.py", "from qedasync import convert, create"),
        ("qedasync/cli/main.py", "from qedasync.errors import QEDError"),
        ("qedasync/nbd/server.py", "from qedasync.nbd.protocol import Request"),
        ("qedasync/cli/bench.py", "from qedasync.bench import Run"),
        ("benchmarks/harness.py", "import os\nimport qedasync"),
        ("benchmarks/ours.py", "from qedasync.bench import run_stream"),
    ],
)
def test_checker_allowed_import_passes(tmp_path: Path, path: str, line: str) -> None:
    place(tmp_path, path, line)
    assert faults(tmp_path) == []


def place(root: Path, path: str, text: str) -> None:
    """Make a file of a small package."""
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(text + "\n", "utf-8")
