"""``check`` beside ``qemu-img check``, and where it does more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "originals"
    folder.mkdir()
    gallery.build(folder)
    return folder


@pytest.fixture(scope="module")
def shared(originals: Path) -> Twins:
    """One pair for what does not write."""
    return Twins(originals.parent, originals)


LOOKING = """
a.qed
-f qed a.qed
--format=qed a.qed
a.qed -f qed
-q a.qed
--output=json a.qed
a.qed --output json
--output=json --output=human a.qed
-T none a.qed
-T writeback a.qed
-T unsafe -U a.qed
-T directsync -T writethrough a.qed
-U a.qed
-Uq a.qed
-qU --output=json a.qed
e.qed
--output=json e.qed
ov.qed
ov2.qed
--output=json ov2.qed
leak.qed
-q leak.qed
--output=json leak.qed
bad.qed
-q bad.qed
--output=json bad.qed
-q --output=json bad.qed
dbl.qed
--output=json dbl.qed
worse.qed
--output=json worse.qed
dirty.qed
--output=json dirty.qed
file:a.qed
--image-opts driver=qed,file.filename=a.qed
--image-opts --output=json driver=qed,file.filename=a.qed
base.raw
-f raw base.raw
-q base.raw
--output=json base.raw
-f raw a.qed
e.raw
junk.qed
short.qed
-f qed base.raw
nope.qed
nothing
sub
''
a.qed a.qed
-r foo a.qed
-r a.qed
-r
--repair=foo a.qed
-T foo a.qed
-T
-f foo a.qed
--output=xml a.qed
-x a.qed
-qx a.qed
--foo a.qed
--image-opts -f qed driver=qed,file.filename=a.qed
-U -r all a.qed
--object foo,id=x a.qed
"""

MENDING = """
-r all a.qed
-r leaks a.qed
-r all -q a.qed
-rall a.qed
-r all --output=json a.qed
--repair=all a.qed
--repair leaks a.qed
-r leaks -r all e.qed
-r all ov2.qed
-r all dirty.qed
-r all base.raw
-r all -T none a.qed
-r all nothing
"""


@pytest.mark.parametrize("words", LOOKING.strip().splitlines())
def test_check_says_the_same(words: str, shared: Twins) -> None:
    shared.run(f"check {words}", files=False)


def test_check_without_repair_writes_nothing(originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    for name in ("a", "leak", "bad", "dbl", "worse", "dirty"):
        before = (twins.mine / f"{name}.qed").read_bytes()
        twins.ours(f"check {name}.qed")
        assert (twins.mine / f"{name}.qed").read_bytes() == before


@pytest.mark.parametrize("words", MENDING.strip().splitlines())
def test_check_that_repairs_says_and_does_the_same(
    words: str, originals: Path, tmp_path: Path
) -> None:
    Twins(tmp_path, originals).run(f"check {words}")


MENDED = "The following inconsistencies were found and repaired:\n\n"
TWICE = "\nDouble checking the fixed image now...\n"
CLEAN = "No errors were found on the image.\n"


@pytest.mark.parametrize(
    ("words", "code", "begins"),
    [
        (
            "-r leaks leak.qed",
            0,
            f"{MENDED}    2 leaked clusters\n    0 corruptions\n{TWICE}{CLEAN}",
        ),
        ("-r all leak.qed", 0, f"{MENDED}    2 leaked clusters\n    0 corruptions\n{TWICE}{CLEAN}"),
        ("-r all bad.qed", 0, f"{MENDED}    2 leaked clusters\n    1 corruptions\n{TWICE}{CLEAN}"),
        ("-r all dbl.qed", 0, f"{MENDED}    0 leaked clusters\n    1 corruptions\n{TWICE}{CLEAN}"),
        ("-r leaks bad.qed", 2, "\n1 errors were found on the image.\n"),
        ("-r leaks dbl.qed", 2, "\n1 errors were found on the image.\n"),
        ("-q -r all worse.qed", 0, ""),
    ],
)
def test_check_repairs_what_qemu_leaves(
    words: str, code: int, begins: str, originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    ours = twins.ours(f"check {words}")
    assert (ours.code, ours.err) == (code, "")
    assert ours.out.startswith(begins)
    if code == 0:
        name = words.split()[-1]
        assert qemu.check(twins.mine / name)["leaks"] == 0
        assert qemu.check(twins.mine / name)["corruptions"] == 0


def test_check_repair_counts_in_json(originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).ours("check -r all --output=json bad.qed")
    facts = json.loads(ours.out)
    assert facts["corruptions-fixed"] == 1
    assert facts["leaks-fixed"] == 2
    assert list(facts).index("corruptions-fixed") < list(facts).index("leaks-fixed")
    assert facts["check-errors"] == 0
    assert "leaks" not in facts


def test_check_repair_of_leaks_leaves_a_corrupt_image_alone(
    originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    before = (twins.mine / "worse.qed").read_bytes()
    assert twins.ours("check -r leaks worse.qed").code == 2
    assert (twins.mine / "worse.qed").read_bytes() == before


def test_check_of_an_image_in_use_is_refused(originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    with qemu.hold(twins.real / "a.qed"), qemu.hold(twins.mine / "a.qed"):
        assert twins.run("check a.qed", files=False).code == 1
        assert twins.run("check -r all a.qed", files=False).code == 1
        assert twins.run("check -U a.qed", files=False).code == 0
