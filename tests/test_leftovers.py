"""The search for leftovers in conftest.py, tried on tests that leave some."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LEAKY = """
import asyncio, os, threading, time
import pytest

KEPT = []

async def test_clean():
    assert asyncio.get_running_loop().get_debug()
    await asyncio.to_thread(os.getpid)

async def test_task():
    KEPT.append(asyncio.create_task(asyncio.sleep(60)))

async def test_unretrieved():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)

@pytest.mark.timeout(0.2)
async def test_hang():
    await asyncio.sleep(60)

def test_descriptor():
    KEPT.append(os.open(os.devnull, os.O_RDONLY))

def test_short_thread():
    threading.Thread(target=time.sleep, args=(0.01,), daemon=True).start()

def test_thread():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

@pytest.mark.leaves_over("on purpose")
async def test_marked():
    KEPT.append(asyncio.create_task(asyncio.sleep(60)))
    KEPT.append(os.open(os.devnull, os.O_RDONLY))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest's summary says of the leaky tests."""
    root = tmp_path_factory.mktemp("leaky")
    (root / "tests").mkdir()
    (root / "tests" / "test_leaky.py").write_text(LEAKY, "utf-8")
    here = Path(__file__).parent
    conftest = (here / "conftest.py").read_text("utf-8")
    (root / "tests" / "conftest.py").write_text(conftest.replace("LINGER = 2.0", "LINGER = 0.2"))
    shutil.copy(here.parent / "pyproject.toml", root)
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # Without what the outer pytest adds, and wide enough for whole messages in the summary.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environ["COLUMNS"] = "1000"
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("name", ["test_clean[asyncio]", "test_clean[uvloop]", "test_short_thread"])
def test_leftovers_clean_test_passes(outcomes: str, name: str) -> None:
    assert f"PASSED tests/test_leaky.py::{name}" in outcomes
    assert f"ERROR tests/test_leaky.py::{name}" not in outcomes


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_leftovers_marked_test_passes(outcomes: str, loop: str) -> None:
    assert f"PASSED tests/test_leaky.py::test_marked[{loop}]" in outcomes
    assert f"ERROR tests/test_leaky.py::test_marked[{loop}]" not in outcomes


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("test_task[asyncio]", "task"),
        ("test_task[uvloop]", "task"),
        ("test_unretrieved[asyncio]", "unhandled"),
        ("test_unretrieved[uvloop]", "unhandled"),
        ("test_descriptor", "descriptor"),
        ("test_thread", "thread"),
    ],
)
def test_leftovers_leaky_test_has_error(outcomes: str, name: str, what: str) -> None:
    assert f"ERROR tests/test_leaky.py::{name} - Failed: left over by the test: {what}" in outcomes


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_leftovers_hanging_test_is_ended(outcomes: str, loop: str) -> None:
    assert f"FAILED tests/test_leaky.py::test_hang[{loop}]" in outcomes
