"""The two folders of the tests of ``qedasync io``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.differential import Twins
from tests.cli.io.pair import build


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("io") / "originals"
    folder.mkdir()
    build(folder)
    return folder


@pytest.fixture
def twins(tmp_path: Path, originals: Path, monkeypatch: pytest.MonkeyPatch) -> Twins:
    """QEMU has no policy for backing files; nor have we here."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")
    return Twins(tmp_path, originals)
