"""``create`` beside ``qemu-img create``: what is printed, the code, and every byte of the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("create") / "originals"
    folder.mkdir()
    gallery.build(folder)
    return folder


SAME = """
-f qed x.qed 1M
-f qed x.qed 0
-f qed x.qed 1
-f qed x.qed 1000
-f qed x.qed 1.5G
-f qed x.qed 0x1000
-f qed x.qed +5M
-f qed x.qed 64T
-f qed x.qed ' 10M'
-f qed x.qed 10b
-fqed x.qed 1M
x.qed -f qed 1M
x.qed 1M -f qed
-q -f qed x.qed 1M
-qf qed x.qed 1M
-f raw -f qed x.qed 1M
-f qed -- x.qed 1M
-f qed -- -x.qed 1M
-f qed file:x.qed 1M
-f qed ./x.qed 1M
-f qed sub/x.qed 1M
-f qed a.qed 3M
-f qed base.raw 3M
-f qed "it's" 1M
-f qed -o size=1M x.qed
-f qed -o cluster_size=4k x.qed 2M
-f qed -o cluster_size=4096,table_size=2 x.qed 2M
-f qed -o cluster_size=1M,table_size=16 x.qed 0
-f qed -o table_size=16 x.qed 2M
-f qed -o table_size=16 -o cluster_size=8k x.qed 2M
-f qed -o cluster_size=4k -o cluster_size=8k x.qed 2M
-f qed -o nocow=on x.qed 1M
-f qed -o nocow=off x.qed 1M
-f qed -o extent_size_hint=1M x.qed 1M
-f qed -o preallocation=off x.qed 1M
-f qed -u x.qed 1M
-f qed -F raw x.qed 1M
-f qed -b base.raw -F raw x.qed
-f qed -b base.raw -F raw x.qed 1000
-f qed -b base.raw -F raw x.qed 8M
-f qed -b r.raw -F raw x.qed
-f qed -b e.raw -F raw x.qed
-f qed -b a.qed -F qed x.qed
-f qed -b a.qed -F raw x.qed
-f qed -b ov2.qed -F qed x.qed
-f qed -b ../a.qed -F qed sub/x.qed
-f qed -b in.qed -F raw sub/x.qed
-f qed -u -b nothing -F qed x.qed 1M
-f qed -u -b 'a, b.raw' -F raw x.qed 1M
-f qed -o backing_file=a.qed,backing_fmt=qed x.qed
-f qed -o backing_file=a.qed -F qed x.qed
-f qed -o backing_file=a.qed,backing_fmt=qed -b base.raw -F raw x.qed
-f qed -o 'backing_file=a,,b' -F raw -u x.qed 1M
-f qed -b ./x.qed -F qed -u x2.qed 1M
x.raw 1M
x.raw 1000
x.raw 0
x.raw 1M -q
-f raw x.raw 1T
-f raw base.raw 64k
-f raw -o size=1M x.raw
-f raw -o preallocation=off x.raw 1M
-f raw -o preallocation=falloc x.raw 1M
-f raw -o preallocation=full x.raw 1M
-f raw -o preallocation=full x.raw 2500000
-f raw -o nonocow x.raw 1M
-f raw -o extent_size_hint=4k,preallocation=off,nocow=off x.raw 1M
-f qed -o help
-f qed -o ?
-f qed -o help x
-f qed -o help,size=1M
-f qed -o size=1M,? x 1M 2M
-f raw -o help
-f raw -o help x
-o help
"""

REFUSED = """
''
x.qed
-f qed
-f qed x.qed
-f qed x.qed 1M foo
-f qed x.qed 1M foo bar
-f qed x.qed 1x
-f qed x.qed x
-f qed x.qed ''
-f qed x.qed -- -1
-f qed x.qed 9E
-f qed x.qed 99999999999999999999
-f qed x.qed 1.5
-f qed x.qed 1e3
-f qed x.qed 10MB
-f qed x.qed 65T
-f qed x.qed 7E
-f qed -o cluster_size=3 x.qed 1M
-f qed -o cluster_size=2k x.qed 1M
-f qed -o cluster_size=128M x.qed 1M
-f qed -o cluster_size=12k x.qed 1M
-f qed -o table_size=3 x.qed 1M
-f qed -o table_size=32 x.qed 1M
-f qed -o table_size=0 x.qed 1M
-f qed -o cluster_size=4k,table_size=2 x.qed 5G
-f qed -o cluster_size=32M x.qed 1M
-f qed -o cluster_size=foo x.qed 1M
-f qed -o cluster_size x.qed 1M
-f qed -o cluster_size= x.qed 1M
-f qed -o cluster_size=4k,,table_size=2 x.qed 1M
-f qed -o size=1M x.qed 2M
-f qed -o foo=bar x.qed 1M
-f qed -o foo x.qed 1M
-f qed -o nofoo x.qed 1M
-f qed -o help=1 x.qed 1M
-f qed -o '' x.qed 1M
-f qed -o , x.qed 1M
-f qed -o cluster_size=4k, x.qed 1M
-f qed -o ,cluster_size=4k x.qed 1M
-f qed -o nocow=foo x.qed 1M
-f qed -o nocow x.qed 1M
-f qed -o preallocation=foo x.qed 1M
-f qed -o
-f foo x.qed 1M
-f foo -o help
-f blkdebug x 1M
-f qed no/x 1M
-f qed . 1M
-f qed sub 1M
-f qed '' 1M
-f qed foo:bar 1M
-f qed blkdebug::x 1M
-f qed 'json:{"driver":"file","filename":"x"}' 1M
-f qed -x x.qed 1M
-f qed --foo x.qed 1M
-f qed --object '' x.qed 1M
-f qed --object foo,id=x x.qed 1M
-f qed -b base.raw x.qed
-f qed -b a.qed x.qed
-f qed -b a.qed x.qed 1M
-f qed -b nothing x.qed
-f qed -b nothing -F qed x.qed
-f qed -b nothing -F qed -u x.qed
-f qed -b nothing -u x.qed 1M
-f qed -u -b nothing -F foo x.qed 1M
-f qed -b '' x.qed 1M
-f qed -b x.qed -F qed x.qed 1M
-f qed -b a.qed -F foo x.qed
-f qed -b base.raw -F qed x.qed
-f qed -b junk.qed -F qed x.qed
-f qed -b short.qed -F qed x.qed
-f qed -b nope.qed -F qed x.qed
-f qed -b a.qed -F qed sub/x.qed
-f qed -b sub -F raw x.qed
-f raw -b base.raw -F raw x.raw
-f raw -F raw x.raw 1M
-f raw -o cluster_size=4k x.raw 1M
-f raw -o preallocation=metadata x.raw 1M
-f raw -o preallocation=foo x.raw 1M
-f raw no/x 1M
-f raw sub 1M
x.raw 1x
x.raw 9000000000000000000
"""


def rows(table: str) -> list[str]:
    """The lines of a table."""
    return table.strip().splitlines()


@pytest.mark.parametrize("words", rows(SAME))
def test_create_makes_and_says_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).run(f"create {words}")
    assert ours.code == 0


@pytest.mark.parametrize("words", rows(REFUSED))
def test_create_refused_says_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    # QEMU has made, or emptied, the file by then.
    ours = Twins(tmp_path, originals).run(f"create {words}", files=False)
    assert ours.code == 1


@pytest.mark.parametrize("name", ["a.qed", "base.raw"])
@pytest.mark.parametrize("options", ["cluster_size=3", "table_size=3", "preallocation=foo"])
def test_create_refused_leaves_the_old_file(
    options: str, name: str, originals: Path, tmp_path: Path
) -> None:
    twins = Twins(tmp_path, originals)
    before = (twins.mine / name).read_bytes()
    assert twins.ours(f"create -f qed -o {options} {name} 1M").code == 1
    assert (twins.mine / name).read_bytes() == before


@pytest.mark.parametrize("fmt", ["qed", "raw"])
def test_create_over_a_file_in_use_is_refused(fmt: str, originals: Path, tmp_path: Path) -> None:
    twins = Twins(tmp_path, originals)
    with qemu.hold(twins.real / "a.qed"), qemu.hold(twins.mine / "a.qed"):
        ours = twins.run(f"create -f {fmt} a.qed 1M", files=False)
    assert "Is another process using the image [a.qed]?" in ours.err


@pytest.mark.parametrize("size", ["10MiB", "1GiB", "10 M"])
def test_create_takes_long_units(size: str, tmp_path: Path) -> None:
    assert Twins(tmp_path).ours(["create", "-f", "qed", "x.qed", size]).code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("fmt", ["qed", "raw"])
def test_create_without_permission_says_the_same(fmt: str, tmp_path: Path) -> None:
    twins = Twins(tmp_path)
    for folder in (twins.real, twins.mine):
        folder.chmod(0o500)
    twins.run(f"create -f {fmt} x 1M")
