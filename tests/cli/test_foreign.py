"""Images of other formats as names on the command line, beside the real tools."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qedasync import nbd
from qedasync.cli.nodes.layer import FOREIGN
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="there is no qemu-nbd")


def build(folder: Path) -> None:
    """x.FMT of each format, with data at 1M; top.qcow2 over x.qcow2; top.qed over that; far.qcow2
    over a file elsewhere; empty.qed."""
    for fmt in FOREIGN:
        qemu.img("create", "-q", "-f", fmt, folder / f"x.{fmt}", "4M")
        qemu.io(folder / f"x.{fmt}", "write -P 7 1M 64k", options=("-f", fmt))
    over = ("create", "-q", "-u", "-f", "qcow2", "-F")
    qemu.img(*over, "qcow2", "-b", "x.qcow2", folder / "top.qcow2", "4M")
    qemu.img(*over, "raw", "-b", "/etc/passwd", folder / "far.qcow2", "4M")
    qemu.img(
        "create", "-q", "-u", "-f", "qed", "-F", "raw", "-b", "top.qcow2", folder / "top.qed", "4M"
    )
    content = bytearray((folder / "top.qed").read_bytes())
    content[16] &= ~4 & 255  # the format is to be looked for
    (folder / "top.qed").write_bytes(content)
    qemu.img("create", "-q", "-f", "qed", folder / "empty.qed", "4M")
    (folder / "text").write_text("nothing")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    build(folder)
    return folder


@pytest.fixture
def twins(original: Path, tmp_path: Path) -> Twins:
    return Twins(tmp_path / "twins", original)


def test_formats_are_those_of_the_library() -> None:
    assert FOREIGN == nbd.FOREIGN_FORMATS


@pytest.mark.parametrize("fmt", FOREIGN)
@pytest.mark.parametrize(
    "command",
    [
        "convert -O raw {} out",
        "convert -f {fmt} -O qed {} out",
        "compare {} x.qcow",
        "measure {}",
        "dd if={} of=out bs=64k count=20 skip=4",
    ],
)
def test_image_is_read_as_by_qemu(command: str, fmt: str, twins: Twins) -> None:
    words = command.format(f"x.{fmt}", fmt=fmt)
    twins.run(words)


def test_there_is_nothing_of_ours_to_check(twins: Twins) -> None:
    assert twins.ours("check x.vdi").code == 63


@pytest.mark.parametrize(
    "words",
    [
        "convert -O raw top.qcow2 out",
        "convert --image-opts -O raw driver=qcow2,file.filename=top.qcow2 out",
        "compare top.qcow2 x.vdi",
        'convert -O raw \'json:{"driver":"qcow2","file":{"filename":"x.qcow2"}}\' out',
    ],
)
def test_chain_of_a_name_is_read_as_by_qemu(words: str, twins: Twins) -> None:
    twins.run(words)


def test_io_reads_and_does_not_write(twins: Twins) -> None:
    read = '-r -c "read -P 7 1M 64k" -c "read -P 0 0 1M" -c length x.vmdk'
    twins.run(read, tool="qemu-io", filter=lambda out: out.split("ops;")[0])
    said = twins.ours('-c "write 0 1k" x.vmdk', tool="qemu-io")
    assert (said.code, said.err) == (
        1,
        "qemu-io: can't open device x.vmdk: vmdk images are opened for reading only\n",
    )


@pytest.mark.parametrize(
    "words",
    ["resize x.qcow2 8M", "commit top.qcow2", "rebase -u -b x.vdi -F vdi top.qcow2",
     "convert -n -O qcow2 x.vdi x.qcow2"],
)  # fmt: skip
def test_verb_that_writes_is_refused(words: str, twins: Twins) -> None:
    said = twins.ours(words)
    assert said.code == 1
    assert said.err.endswith("qcow2 images are opened for reading only\n")
    twins.assert_same_files()


def test_info_tells_the_chain(twins: Twins) -> None:
    said = twins.ours("info --backing-chain top.qcow2")
    assert said.code == 0
    theirs = twins.theirs("info --backing-chain top.qcow2").out
    for line in said.out.splitlines():
        assert line in theirs.splitlines()
    assert "backing file: x.qcow2" in said.out
    assert "image: x.qcow2\nfile format: qcow2" in said.out


# -------------------------------------------------- QED over another format


@pytest.mark.parametrize("fmt", FOREIGN)
def test_overlay_is_created_as_by_qemu(fmt: str, twins: Twins) -> None:
    """The format is not recorded: an image has no place for it."""
    twins.run(f"create -f qed -b x.{fmt} -F {fmt} new.qed")


@pytest.mark.parametrize(
    "words",
    [
        "create -f qed -o backing_file=x.vdi,backing_fmt=vdi new.qed 8M",
        "create -f qed -u -b none.qcow2 -F qcow2 new.qed 8M",
        "create -f qed -b none.qcow2 -F qcow2 new.qed 8M",
        "create -f qed -b x.vdi new.qed",
        "convert -O qed -B x.qcow2 x.vdi new.qed",
        "rebase -u -b x.vdi -F vdi empty.qed",
        "rebase -b x.vdi -F vdi empty.qed",
        "rebase -b x.vdi -F nope empty.qed",
    ],
)
def test_backing_file_that_is_named_is_taken_as_by_qemu(words: str, twins: Twins) -> None:
    twins.run(words)


@pytest.mark.parametrize("words", ["-B x.qcow2 -F qcow2 x.vdi", "-B x.vdi -F vdi top.qcow2"])
def test_overlay_is_converted_to_as_by_qemu(words: str, twins: Twins) -> None:
    """What is zeroes in both is left unallocated, so the images only read the same."""
    twins.run(f"convert -O qed {words} new.qed", files=False)
    qemu.img("compare", "-f", "qed", "-F", "qed", twins.mine / "new.qed", twins.real / "new.qed")


def test_rebase_off_another_format_needs_the_policy(twins: Twins) -> None:
    twins.ours("rebase -u -b x.vdi -F vdi empty.qed")
    qemu.img("rebase", "-u", "-b", "x.vdi", "-F", "vdi", twins.real / "empty.qed")
    assert twins.ours("rebase -b x.vhdx -F vhdx empty.qed").code == 1
    twins.assert_same_files()
    assert twins.ours("rebase --backing any -b x.vhdx -F vhdx empty.qed").code == 0
    assert b"x.vhdx" in (twins.mine / "empty.qed").read_bytes()[:512]


# ------------------------------------------------------------------------- policy


def test_backing_file_of_another_format_needs_the_policy(twins: Twins) -> None:
    said = twins.ours("convert -O raw top.qed out")
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "qemu-img: Could not open 'top.qed': Could not open backing file: 'top.qcow2' is an image"
        " of another format; --backing any, or --backing 'allow:top.qcow2', opens it by means of"
        " qemu-nbd\n"
    )
    twins.theirs("convert -O raw top.qed out")
    for policy in ("any", "allow:*top.qcow2"):
        assert twins.ours(f"convert -O raw --backing {policy} top.qed out").code == 0
        assert (twins.mine / "out").read_bytes() == (twins.real / "out").read_bytes()


def test_name_in_an_image_that_the_user_named_passes_the_policy(twins: Twins) -> None:
    said = twins.ours("convert -O raw far.qcow2 out")
    assert said.err == (
        "qemu-img: Could not open 'far.qcow2': the backing file '/etc/passwd' is not allowed by"
        " the policy; --backing any, or --backing 'allow:/etc/passwd', opens it\n"
    )
    assert twins.ours("info far.qcow2").code == 0
    assert twins.ours("convert -O raw --backing deny top.qcow2 out").code == 1
    twins.theirs("convert -O raw far.qcow2 out")
    assert twins.ours("convert -O raw --backing any far.qcow2 out").code == 0
    assert (twins.mine / "out").read_bytes() == (twins.real / "out").read_bytes()


def test_image_inside_something_else_is_refused(twins: Twins) -> None:
    said = twins.ours("info blkdebug::x.qcow2")
    assert "qcow2 images are opened only where they are files" in said.err


def test_without_qemu_nbd_it_is_said_what_is_missing(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = twins.ours("info x.qcow2")
    assert said.err == (
        "qemu-img: Could not open 'x.qcow2': There is no qemu-nbd here to open the image with\n"
    )


def test_human_map_of_what_has_no_place_in_a_file_is_refused(twins: Twins) -> None:
    said = twins.ours("map x.qcow2")
    assert said.err == ("qemu-img: File contains external, encrypted or compressed clusters.\n")
    runs = twins.ours("map --output=json x.qcow2")
    assert '"start": 1048576, "length": 65536' in runs.out
