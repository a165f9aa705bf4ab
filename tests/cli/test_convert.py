"""``convert`` beside ``qemu-img convert``: what is printed, the code, and the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2

_PROGRESS = re.compile(r"(    \(\d+\.\d\d/100%\)\r)+")


def steady(text: str) -> str:
    """Without how often progress was shown; that it began at 0 stays."""
    return re.sub(_PROGRESS, lambda found: f"{found[0][:17]}...", text)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "originals"
    folder.mkdir()
    gallery.build(folder)
    return folder


@pytest.fixture(autouse=True)
def any_backing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has no policy."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")


SAME = """
a.qed x
-f qed a.qed x
-O raw a.qed x
-O qed a.qed x.qed
-Oqed a.qed x.qed
a.qed -O qed x.qed
a.qed x.qed -O qed
-O raw -O qed a.qed x.qed
-f raw a.qed x
-f raw -O qed base.raw x.qed
-O qed base.raw x.qed
-O qed -o cluster_size=4k,table_size=2 a.qed x.qed
-O qed -o cluster_size=4k -o table_size=2 a.qed x.qed
-O qed -o cluster_size=1M ov2.qed x.qed
-O qed -o table_size=16 ov.qed x.qed
-O qed -o size=1M a.qed x.qed
-O qed -o preallocation=full a.qed x.qed
-o size=20M a.qed x
-o preallocation=falloc base.raw x
-o preallocation=full base.raw x
-p a.qed x
-p -O qed a.qed x.qed
-pq a.qed x
-q a.qed x
-p e.qed x
-U a.qed x
-S 4k a.qed x
-S 4k -O qed a.qed x.qed
-S 512 a.qed x
-S 64k -O qed base.raw x.qed
-S 16M a.qed x
-S 0 a.qed x
-S 0 -O qed ov.qed x.qed
-m 1 a.qed x
-m 16 -W a.qed x
-W -O qed ov2.qed x.qed
-t none a.qed x
-t writeback -O qed a.qed x.qed
-t writethrough -O qed a.qed x.qed
-t directsync a.qed x
-t unsafe a.qed x
-T none a.qed x
-T unsafe -O qed a.qed x.qed
-T directsync a.qed x
-r 100M a.qed x
-r 0 -O qed a.qed x.qed
-C a.qed x
-C -O qed a.qed x.qed
--salvage a.qed x
e.qed x
e.raw x
-O qed e.raw x.qed
-O qed e.qed e.raw x.qed
ov.qed x
ov2.qed x
-O qed ov2.qed x.qed
-O qed sub/ov.qed sub/x.qed
a.qed ov.qed x
-O qed a.qed base.raw r.raw x.qed
-p -O qed ov2.qed ov.qed x.qed
r.raw r1.raw x
-f raw r.raw r1.raw x
-O qed -f raw r.raw x.qed
r1.raw x
a.qed base.raw
-O qed a.qed base.raw
-O qed a.qed e.qed
a.qed file:x
file:a.qed x
-O qed -B base.raw -F raw ov.qed x.qed
-O qed -o backing_file=base.raw,backing_fmt=raw ov.qed x.qed
-O qed -B ov.qed -F qed ov2.qed x.qed
-O qed -B base.raw -F qed ov.qed x.qed
-O qed -S 0 -B base.raw -F raw ov.qed x.qed
-O qed -B base.raw -F raw -o cluster_size=4k ov.qed x.qed
-O qed -B ../a.qed -F qed sub/ov.qed sub/x.qed
-O qed -B base.raw -F raw ov2.qed x.qed
-O qed -F raw ov.qed x.qed
-n -O qed ov.qed a.qed
-n -O qed base.raw a.qed
-n -p -O qed base.raw a.qed
-n -O qed base.raw ov2.qed
-n -O qed -S 0 -f raw base.raw ov2.qed
-n --target-is-zero -O qed base.raw e.qed
-n --target-is-zero -O qed base.raw ov2.qed
-n -O qed -B base.raw ov.qed ov2.qed
-n -O qed -B base.raw -F raw ov.qed ov2.qed
-n -O qed -F raw ov.qed ov2.qed
-n -O raw r.raw base.raw
-n -t none -O qed a.qed dirty.qed
-n --target-image-opts a.qed driver=qed,file.filename=dirty.qed
--image-opts driver=qed,file.filename=a.qed x
-- a.qed x
dirty.qed x
leak.qed x
-o help -O qed
-o help
-o help a.qed x
-O qed -o help a.qed x.qed
-O qed -o help a.qed
-O qed -o ? a.qed
"""


@pytest.mark.parametrize("words", SAME.strip().splitlines())
def test_convert_makes_the_same_image(words: str, originals: Path, tmp_path: Path) -> None:
    Twins(tmp_path, originals).run(f"convert {words}", filter=steady)


REFUSED = """
''
a.qed
-O foo a.qed x
-O '' a.qed x
-f foo a.qed x
-f '' a.qed x
-c a.qed x
-c -O qed a.qed x.qed
-c -n -O qed a.qed dirty.qed
-l foo a.qed x
-l snapshot.id=1 a.qed x
-l snapshot.foo=1 a.qed x
-l foo a.qed base.raw x
-l foo base.raw x
-B base.raw -l foo a.qed x
-n a.qed x
-n a.qed e.raw
-n -p a.qed base.raw
-n -O qed a.qed e.qed
-n -O raw ov.qed a.qed
-n base.raw a.qed
-n -o size=1 a.qed e.raw
-n -O qed a.qed junk.qed
-n -O qed a.qed nope.qed
-n -O qed a.qed base.raw
-n -O qed a.qed nothing.qed
-n -t foo -O qed a.qed dirty.qed
-S foo a.qed x
-S 1000 a.qed x
-S 32M a.qed x
-S -1 a.qed x
-m 0 a.qed x
-m 17 a.qed x
-m foo a.qed x
-T foo a.qed x
-r foo a.qed x
-r 9E a.qed x
--target-is-zero a.qed x
--target-is-zero -n a.qed e.raw
--target-is-zero -n -O qed a.qed ov2.qed
--bitmaps a.qed x
--bitmaps base.raw x
--bitmaps -O qed a.qed x
--skip-broken-bitmaps a.qed x
-C -S 4k a.qed x
-C -c a.qed x
--salvage -C a.qed x
-O qed -B base.raw ov.qed x.qed
-O qed -o backing_file=base.raw ov.qed x.qed
-O qed -B base.raw -F raw a.qed ov.qed x.qed
-F raw ov.qed x
-B base.raw ov.qed x
-O qed -o foo=1 a.qed x.qed
-O qed -o , a.qed x.qed
-O qed -o cluster_size=foo a.qed x.qed
a.qed a.qed
-O qed a.qed a.qed
-O qed ov.qed a.qed ov.qed
-O qed ov2.qed ov.qed
nothing x
-p nothing x
nope.qed x
junk.qed x
-O qed short.qed x.qed
--image-opts -f qed driver=qed,file.filename=a.qed x
--target-image-opts a.qed driver=raw,file.filename=x
-n --target-image-opts a.qed driver=raw,file.filename=x
-n --target-image-opts -O qed a.qed driver=qed,file.filename=dirty.qed
--object foo,id=x a.qed x
a.qed sub/x/y
a.qed sub
-O qed a.qed sub
a.qed /dev/null
a.qed foo:x
-O qed a.qed 'json:{"driver":"file","filename":"x"}'
-O qed -B a.qed -F qed nothing x.qed
"""


@pytest.mark.parametrize("words", REFUSED.strip().splitlines())
def test_convert_refuses_the_same(words: str, originals: Path, tmp_path: Path) -> None:
    ours = Twins(tmp_path, originals).run(f"convert {words}", filter=steady)
    assert ours.code == 1
