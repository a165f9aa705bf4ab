"""Copy-on-read beside qemu-io's: the same clusters are in the image afterwards, data or zeroes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.differential import Twins
from tests.cli.io.pair import run_block
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


def build(folder: Path) -> None:
    """Make them:

    base.raw   3 MiB and 1000 bytes: data at 64k, 192k to 208k, and all of the second MiB
    wide.qed   4 MiB over it, with data at 128k and zeroes at 256k
    tiny.qed   the same with clusters of 4 KiB and tables of 4 KiB, of which each reaches 2 MiB
    odd.qed    1 MiB and 512 bytes over it
    mid.qed    over base.raw, with data at 512k; top.qed over mid.qed
    alone.qed  1 MiB over nothing
    """
    base = folder / "base.raw"
    with base.open("wb") as file:
        file.truncate((3 << 20) + 1000)
    raw = ("-f", "raw")
    qemu.io(base, "write -P 1 64k 64k", "write -P 2 192k 16k", "write -P 3 1M 1M", options=raw)
    below = ("base.raw", "raw")
    qemu.create(folder / "wide.qed", 4 << 20, backing=below)
    qemu.create(folder / "tiny.qed", 4 << 20, cluster_size=4096, table_size=2, backing=below)
    for name in ("wide.qed", "tiny.qed"):
        qemu.io(folder / name, "write -P 4 128k 64k", "write -z 256k 64k")
    qemu.create(folder / "odd.qed", (1 << 20) + 512, backing=below)
    qemu.create(folder / "mid.qed", 2 << 20, backing=below)
    qemu.io(folder / "mid.qed", "write -P 5 512k 64k")
    qemu.create(folder / "top.qed", 2 << 20, backing=("mid.qed", "qed"))
    qemu.create(folder / "alone.qed", 1 << 20)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies") / "originals"
    folder.mkdir()
    build(folder)
    return folder


READS = [
    ("wide.qed", ["read 64k 512"]),
    ("wide.qed", ["read -P 1 100k 1k", "read 100k 1k"]),
    ("wide.qed", ["read 0 64k"]),
    ("wide.qed", ["read 0 128k"]),
    ("wide.qed", ["read 1 511"]),
    ("wide.qed", ["read 64k 256k"]),
    ("wide.qed", ["read 100k 1M"]),
    ("wide.qed", ["read 0 4M"]),
    ("wide.qed", ["read 3M 1M"]),
    ("wide.qed", ["read 2M 64k", "read 1984k 128k"]),
    ("wide.qed", ["read 128k 64k", "read 256k 64k"]),
    ("wide.qed", ["read 127k 2k"]),
    ("wide.qed", ["readv 64k 512 1k 64k", "readv -P 3 1M 1 2 3"]),
    ("wide.qed", ["aio_read 960k 128k", "aio_flush"]),
    ("wide.qed", ["write -P 9 64k 512", "read 64k 1k", "write -z 1M 64k", "read 1M 128k"]),
    ("wide.qed", ["read 0 0", "read 4M 0", "read 4M 1", "read 4095k 2k"]),
    ("wide.qed", ["map", "alloc 0 4M"]),
    ("tiny.qed", ["read 64k 1"]),
    ("tiny.qed", ["read 60k 100k"]),
    ("tiny.qed", ["read 200k 20k"]),
    ("tiny.qed", ["read 0 4M"]),
    ("tiny.qed", ["read 1M 3M"]),
    ("tiny.qed", ["read 2047k 2k"]),
    ("odd.qed", ["read 1M 512"]),
    ("odd.qed", ["read 0 1049088"]),
    ("top.qed", ["read 512k 1k"]),
    ("top.qed", ["read 0 2M"]),
    ("top.qed", ["read 448k 192k"]),
    ("alone.qed", ["read 0 100k"]),
    ("alone.qed", ["write -P 1 64k 1k", "read 0 1M"]),
]


@pytest.mark.parametrize(("image", "commands"), READS)
def test_copy_on_read_leaves_in_the_image_what_qemu_leaves(
    image: str, commands: list[str], originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    run_block(twins, f"-C {image}", commands)
    assert own_runs(twins.mine / image) == own_runs(twins.real / image)


def test_copy_on_read_through_a_raw_node_does_the_same(originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    options = "driver=raw,file.driver=qed,file.file.driver=file,file.file.filename=wide.qed"
    run_block(twins, f"-C --image-opts {options}", ["read 100k 200k"])
    assert own_runs(twins.mine / "wide.qed") == own_runs(twins.real / "wide.qed")


def own_runs(image: Path) -> list[Any]:
    """The runs that the image itself has: start, length, whether they are zeroes."""
    below = f"json:{json.dumps({'driver': 'qed', 'file.filename': str(image), 'backing': None})}"
    said = qemu.img("map", "--output=json", below).stdout
    return [
        (run["start"], run["length"], run["zero"]) for run in json.loads(said) if run["present"]
    ]
