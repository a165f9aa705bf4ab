"""Which backing files an image may name, and what a refusal says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import qedasync
from qedasync.cli.nodes import Access, open_node, policy
from qedasync.cli.nodes.policy import admit, errno_of, explain
from qedasync.cli.options import ToolError

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QEDASYNC_BACKING", raising=False)


@pytest.fixture
async def images(tmp_path: Path) -> Path:
    """near.qed over a file beside it, far.qed over one elsewhere, url.qed over no path."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for folder in ("here", "there"):
        (tmp_path / folder / "base.raw").write_bytes(bytes([7]) * SIZE)
    for name, below in (("near", "base.raw"), ("far", "../there/base.raw")):
        path = tmp_path / "here" / f"{name}.qed"
        await qedasync.create(path, SIZE, backing_file=below, backing_format="raw")
    path = tmp_path / "here" / "url.qed"
    await qedasync.create(path, SIZE)
    async with qedasync.open(path, "r+") as image:
        await image.change_backing_file("nbd://127.0.0.1:1/x", "raw")
    return tmp_path / "here"


async def first_byte(path: Path, word: str | None) -> int:
    node = await open_node(str(path), None, Access(backing=word))
    try:
        return int((await node.disk.pread(1, 0))[0])
    finally:
        await node.close()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("near", None),
        ("near", "same-dir"),
        ("near", "any"),
        ("near", "allow:nothing"),
        ("far", "any"),
        ("far", "allow:*/there/*"),
        ("far", "allow:../there/base.raw"),
    ],
)
async def test_backing_file_that_the_policy_allows_is_read(
    name: str, word: str | None, images: Path
) -> None:
    assert await first_byte(images / f"{name}.qed", word) == 7


@pytest.mark.parametrize(
    ("name", "word"),
    [("near", "deny"), ("far", None), ("far", "same-dir"), ("far", "allow:*/other/*")],
)
async def test_backing_file_that_it_does_not_is_refused_with_file_and_option(
    name: str, word: str | None, images: Path
) -> None:
    with pytest.raises(ToolError) as caught:
        await first_byte(images / f"{name}.qed", word)
    below = "base.raw" if name == "near" else "../there/base.raw"
    said = str(caught.value)
    assert said.startswith(f"Could not open '{images / name}.qed': the backing file '{below}'")
    assert f"--backing 'allow:{below}'" in said
    assert "\n" not in said


@pytest.mark.parametrize("word", ["same-dir", "deny", "allow:*.raw"])
async def test_nbd_uri_is_refused_unless_the_policy_allows_it(images: Path, word: str) -> None:
    with pytest.raises(ToolError, match=r"'nbd://127.0.0.1:1/x' is not allowed by the policy"):
        await first_byte(images / "url.qed", word)


@pytest.mark.parametrize("word", ["any", "allow:nbd://127.0.0.1:*"])
async def test_nbd_uri_that_the_policy_allows_is_connected_to(images: Path, word: str) -> None:
    with pytest.raises(ToolError, match=r"Could not open backing file: .*Connect"):
        await first_byte(images / "url.qed", word)


async def test_other_url_is_refused_whatever_the_policy(images: Path) -> None:
    async with qedasync.open(images / "url.qed", "r+", backing=False) as image:
        await image.change_backing_file("http://127.0.0.1:1/x", "raw")
    with pytest.raises(ToolError, match=r"'http://127.0.0.1:1/x' is not a plain path; no policy"):
        await first_byte(images / "url.qed", "any")


async def test_environment_says_what_the_option_does_not(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEDASYNC_BACKING", "any")
    assert await first_byte(images / "far.qed", None) == 7
    with pytest.raises(ToolError, match="not allowed by the policy"):
        await first_byte(images / "far.qed", "same-dir")


async def test_names_of_the_command_line_are_never_refused(images: Path) -> None:
    far = images.parent / "there" / "base.raw"
    name = (
        f"driver=qed,file.filename={images}/far.qed,backing.driver=raw,backing.file.filename={far}"
    )
    node = await open_node(name, None, Access(backing="deny"), image_opts=True)
    assert (await node.disk.pread(1, 0))[0] == 7
    await node.close()


async def test_options_for_the_backing_file_that_the_image_names_do_not_go_round_the_policy(
    images: Path,
) -> None:
    name = f"driver=qed,file.filename={images}/far.qed,backing.driver=raw"
    with pytest.raises(ToolError, match="not allowed by the policy"):
        await open_node(name, None, Access(), image_opts=True)
    node = await open_node(name, None, Access(backing="any"), image_opts=True)
    assert (await node.disk.pread(1, 0))[0] == 7
    await node.close()


async def test_backing_null_opens_nothing(images: Path) -> None:
    name = f"json:{{'driver':'qed','file.filename':'{images}/far.qed','backing':null}}"
    node = await open_node(name, None, Access(backing="deny"))
    assert (await node.disk.pread(1, 0))[0] == 0
    await node.close()


async def test_no_backing_opens_nothing(images: Path) -> None:
    node = await open_node(str(images / "far.qed"), None, Access(no_backing=True))
    assert node.disk.backing_file == "../there/base.raw"
    await node.close()


async def test_policy_holds_for_every_layer_and_seen_from_there(images: Path) -> None:
    top = images.parent / "there" / "top.qed"
    await qedasync.create(top, SIZE, backing_file="../here/far.qed", backing="any")
    with pytest.raises(ToolError, match=r"'../here/far.qed' is not allowed"):
        await first_byte(top, None)
    with pytest.raises(ToolError, match=r"'../there/base.raw' is not allowed"):
        await first_byte(top, "allow:*/far.qed")
    assert await first_byte(top, "any") == 7


def test_policy_of_another_word_is_refused() -> None:
    with pytest.raises(ToolError, match="Invalid backing policy 'all'"):
        policy("all")


def test_admit_asks_as_the_library_does(tmp_path: Path) -> None:
    image, near = str(tmp_path / "a.qed"), str(tmp_path / "b")
    admit("b", near, image, None)
    admit("/x/b", "/x/b", image, "allow:/x/*")
    for name, path, word in (("/x/b", "/x/b", None), ("b", near, "deny"), ("a:b", near, "any")):
        with pytest.raises(qedasync.BackingRefused):
            admit(name, path, image, word)


def test_admit_follows_links(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    os.symlink("/etc/passwd", tmp_path / "sub" / "b")
    with pytest.raises(qedasync.BackingRefused):
        admit("b", str(tmp_path / "sub" / "b"), str(tmp_path / "sub" / "a.qed"), None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (qedasync.UnsupportedFeature("no", value=0x18), "Unsupported QED features: 18"),
        (qedasync.HeaderError("no", field="magic"), "Image not in QED format"),
        (qedasync.FormatError("something else"), "something else"),
        (qedasync.StorageError(28), "No space left on device"),
        (qedasync.RequestError("wrong"), "wrong"),
        (
            qedasync.BackingError("no", name="b", errno=2),
            "Could not open backing file: Could not open 'd/b': No such file or directory",
        ),
        (
            qedasync.BackingError("no", name="b", errno=21),
            "Could not open backing file: 'file' driver requires 'd/b' to be a regular file",
        ),
    ],
)
def test_errors_of_the_library_in_qemus_words(error: qedasync.QEDError, words: str) -> None:
    assert explain(error, "d/a.qed") == words


def test_errno_of_an_error() -> None:
    assert errno_of(qedasync.StorageError(28)) == 28
    assert errno_of(ValueError()) == 5
