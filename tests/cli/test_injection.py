"""Errors at named steps, by blkdebug, during convert, commit and rebase: beside qemu-img.

What matters besides the message: the images. Whatever fails, the overlay reads as before, nothing
is corrupt, and a new target is not there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Outcome, Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2

EVENTS = (
    "l1_update",
    "l2_update",
    "l2_load",
    "read_aio",
    "write_aio",
    "cow_read",
    "cow_write",
    "flush_to_disk",
    "cluster_alloc",
    "pwritev",
    "pwritev_zero",
)
ERRORS = {"EIO": 5, "ENOSPC": 28}
SPACING = {"once": "on", "always": "off"}

BACKING = (
    "--image-opts driver=qed,file.filename=flat.qed,backing.driver={format},"
    "backing.file.driver=blkdebug,backing.file.config={rule},backing.file.image.driver=file,"
    "backing.file.image.filename="
)

COMMANDS = {
    "convert from qed": "convert -O qed blkdebug:{rule}:a.qed x.qed",
    "convert from raw": "convert -f raw -O qed blkdebug:{rule}:base.raw x.qed",
    "convert from chain": "convert -O raw blkdebug:{rule}:top.qed x.raw",
    "convert to empty": "convert -n -O qed a.qed blkdebug:{rule}:empty.qed",
    "convert to overlay": "convert -n -O qed ov.qed blkdebug:{rule}:ov2.qed",
    "convert to raw": "convert -n -O raw a.qed blkdebug:{rule}:space.raw",
    "rebase to nothing": "rebase -b '' blkdebug:{rule}:ov.qed",
    "rebase to nothing, nothing to copy": "rebase -b '' blkdebug:{rule}:top.qed",
    "rebase": "rebase -b /proc/self/cwd/a.qed -F qed blkdebug:{rule}:ov2.qed",
    "rebase to a bad one": "rebase -b blkdebug:{rule}:a.qed -F qed top.qed",
    "rebase of the name": "rebase -u -b a.qed -F qed blkdebug:{rule}:top.qed",
    "commit": "commit -d blkdebug:{rule}:top.qed",
    "commit into raw": "commit -d " + BACKING.replace("{format}", "raw") + "base.raw",
    "commit into qed": "commit -d " + BACKING.replace("{format}", "qed") + "e.qed",
}
"""Name -> words; the faults are in the file that blkdebug stands before."""

READS = {
    "convert from qed": ("x.qed", "a.qed"),
    "convert from raw": ("x.qed", "base.raw"),
    "convert from chain": ("x.raw", "top.qed"),
    "convert to empty": ("empty.qed", "a.qed"),
    "convert to overlay": ("ov2.qed", "ov.qed"),
    "convert to raw": ("space.raw", "a.qed"),
    "rebase to nothing": ("ov.qed", "ov.qed"),
    "rebase to nothing, nothing to copy": ("top.qed", "top.qed"),
    "rebase": ("ov2.qed", "ov2.qed"),
    "rebase to a bad one": ("top.qed", "top.qed"),
    "commit": ("top.qed", "top.qed"),
    "commit into raw": ("flat.qed", "flat.qed"),
    "commit into qed": ("flat.qed", "flat.qed"),
}
"""Name -> a file, and what it reads as: when all went well; of rebase and commit, whatever went."""

WRITES_TARGET = ("convert to empty", "convert to overlay", "convert to raw")


def build(folder: Path) -> None:
    """The gallery, overlays that hold something, room to convert to, and the rules."""
    gallery.build(folder)
    content = ("write -P 5 3M 64k", "write -P 6 100k 5k", "write -z 128k 64k")
    qemu.create(folder / "top.qed", 4 << 20, backing=("ov.qed", "qed"))
    qemu.create(folder / "flat.qed", 4 << 20)
    for name in ("top.qed", "flat.qed"):
        qemu.io(folder / name, *content)
    qemu.create(folder / "empty.qed", 10 << 20)
    with (folder / "space.raw").open("wb") as file:
        file.truncate(10 << 20)
    for event, error, spacing in itertools.product(EVENTS, ERRORS, SPACING):
        (folder / f"{event}-{error}-{spacing}").write_text(
            f'[inject-error]\nevent = "{event}"\n'
            f'errno = "{ERRORS[error]}"\nonce = "{SPACING[spacing]}"\n'
        )


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("injection") / "originals"
    folder.mkdir()
    build(folder)
    return folder


@pytest.fixture(autouse=True)
def any_backing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has no policy."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")


TOLD = {
    ("convert to *", "flush_to_disk"): "a flush that fails is told",
    ("rebase*", "flush_to_disk"): "a flush that fails is told",
    ("commit", "flush_to_disk"): "a flush that fails is told",
    ("*", "cluster_alloc"): "the file grows in a step of its own",
    ("convert to *", "l2_load"): "tables are loaded in slices, those just written, too",
    ("rebase", "l2_load"): "tables are loaded in slices, those just written, too",
    ("convert to empty", "pwritev_zero"): "zeroes in data are written as such",
}
"""Where ours fails and qemu-img does not, and why."""

_ONE_BY_ONE = "requests that failed together are tried one by one"

SPARED = {
    ("convert to *", "cow_write"): "the rest of a new cluster is zeroes without being written",
    ("rebase*", "cow_write"): "what is copied are whole clusters, written at once",
    ("convert to overlay", "write_aio"): _ONE_BY_ONE,
    ("rebase", "l1_update"): _ONE_BY_ONE,
    ("rebase", "l2_update"): _ONE_BY_ONE,
    ("rebase", "write_aio"): _ONE_BY_ONE,
    ("rebase", "pwritev"): _ONE_BY_ONE,
    ("commit into qed", "l1_update"): _ONE_BY_ONE,
    ("commit into qed", "l2_update"): _ONE_BY_ONE,
    ("commit into qed", "write_aio"): _ONE_BY_ONE,
}
"""Where qemu-img fails and ours does not, and why."""


def is_among(rows: dict[tuple[str, str], str], command: str, event: str) -> bool:
    return any(
        event == its_event and re.fullmatch(pattern.replace("*", ".*"), command)
        for pattern, its_event in rows
    )


def points() -> Iterator[tuple[str, str, str, str]]:
    """All commands and events, with both errors and both spacings in turn."""
    kinds = itertools.cycle(itertools.product(ERRORS, SPACING))
    for command, event in itertools.product(COMMANDS, EVENTS):
        for error, spacing in (next(kinds), next(kinds)):
            yield command, event, error, spacing
        next(kinds)


RUNS = 6
"""How often the real tool may run: its several requests race for the one error, so its own answer
can differ from run to run, and sometimes it dies of an assertion. Ours must be among them."""


@pytest.mark.parametrize(("command", "event", "error", "spacing"), list(points()))
def test_error_at_a_step_is_told_as_qemu_tells_it(
    command: str, event: str, error: str, spacing: str, originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    words = COMMANDS[command].format(rule=f"{event}-{error}-{spacing}")
    ours = twins.ours(words)
    reals = []
    for number in range(RUNS):
        reals.append(Twins(tmp_path / f"run{number}", originals).theirs(words))
        if agrees(command, event, spacing, ours, reals[-1]):
            break
    said = f"\n{words}\nreal: {reals}\nours: {ours}"
    assert ours.err.count("\n") <= 1, said
    reasons = (os.strerror(ERRORS[error]), "new backing", "No space left in the file header")
    assert ours.code == 0 or any(reason in ours.err for reason in reasons), said
    assert agrees(command, event, spacing, ours, reals[-1]), said
    assert_sound(twins, originals, command, ours, said)


def agrees(command: str, event: str, spacing: str, ours: Outcome, real: Outcome) -> bool:
    """Whether ours says what the real tool said, or differs as the rows above allow."""
    if real.code < 0:  # it died; there is nothing to be like
        return ours.code in (0, 1)
    if is_among(TOLD, command, event) and real.code == 0:
        return ours.code in (0, 1)
    if is_among(SPARED, command, event) and real.code == 1:
        return ours.code == 1 or spacing == "once" or event == "cow_write"
    return ours.code == real.code and shape(command, ours) == shape(command, real)


def shape(command: str, said: Outcome) -> str:
    """What it said; without where a write failed, for ours writes several pieces at once.

    The header is the last thing that a rebase writes, and not told from the rest by ours.
    """
    text = said.first_error
    if command in WRITES_TARGET:
        return re.sub(r"at byte \d+", "at byte ...", text)
    if command.startswith("rebase to nothing"):
        text = re.sub("Could not change the backing file to '': .*", "...", text)
        return re.sub("Error while writing to COW image: .*", "...", text)
    return text


def assert_sound(twins: Twins, originals: Path, command: str, ours: Outcome, said: str) -> None:
    """Our files are as they must be, whether it went well or not."""
    name, source = READS.get(command, ("", ""))
    assert not list(twins.mine.glob(".*")), said
    for new in ("x.qed", "x.raw"):
        assert (twins.mine / new).exists() == (ours.code == 0 and new == name), said
    with contextlib.chdir(twins.mine):  # some names of backing files start there
        for image in ("a.qed", "ov.qed", "ov2.qed", "top.qed", "flat.qed", "empty.qed", "e.qed"):
            if (command, image) != ("rebase to a bad one", "top.qed"):  # the rule works there, too
                assert qemu.check(Path(image))["corruptions"] == 0, f"{image}{said}"
        if name and (ours.code == 0 or not command.startswith("convert")):
            compared = qemu.img("compare", name, originals / source, status=None)
            assert compared.returncode == 0, f"{name}: {compared.stdout}{compared.stderr}{said}"
