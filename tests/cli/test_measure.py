"""``measure``, ``snapshot`` and ``amend`` beside qemu-img's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import gallery
from tests.cli.differential import Twins
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """One pair for all: nothing here writes."""
    return Twins(tmp_path_factory.mktemp("measure"), gallery.build)


MEASURE = """
a.qed
-O raw a.qed
-f qed a.qed
-f raw a.qed
-f qed -O raw a.qed
--output=json a.qed
--output json -O raw a.qed
e.qed
e.raw
r.raw
r1.raw
base.raw
ov.qed
ov2.qed
-U a.qed
file:a.qed
--image-opts driver=qed,file.filename=a.qed
--size 10M
--size=10M
--size 10M -O raw
--size 0
--size 1
--size 1000
--size 1.5G --output=json
--size 100M --size 1M
-o preallocation=full --size 1M
-o preallocation=falloc a.qed
-o size=2M a.qed
-o size=2M --size 1M
''
a.qed e.qed
--size x
--size 9E
--size=-1
--size 10M a.qed
--output=foo a.qed
-O foo a.qed
-O foo --size 1M
-f foo a.qed
-f qed --size 1M
-f qed base.raw
-l foo a.qed
-l snapshot.id=1 a.qed
-l foo --size 1M
-o foo=1 --size 1M
-o help
-o help a.qed
-o size=2M
-o , --size 1M
nothing
junk.qed
nope.qed
--image-opts --size 1M
--image-opts -f qed driver=qed,file.filename=a.qed
--object foo,id=x a.qed
"""

SNAPSHOT = """
-l a.qed
a.qed
-q -l a.qed
-ql a.qed
-U -l a.qed
-l base.raw
-l ov2.qed
--image-opts -l driver=qed,file.filename=a.qed
-c foo a.qed
-a foo a.qed
-d foo a.qed
-cfoo a.qed
a.qed -c foo
-c x base.raw
-a x base.raw
-d x base.raw
-l -c foo a.qed
-l -l a.qed
-c x -c y a.qed
-d x -a y a.qed
-c
-U -c x a.qed
-l nothing
-c x nothing
-l a.qed e.qed
''
-f qed a.qed
-l -f raw a.qed
--list a.qed
-l junk.qed
-l nope.qed
--object foo,id=x a.qed
"""

AMEND = """
''
a.qed
-o cluster_size=4k a.qed
-o foo=bar a.qed
-f qed -o cluster_size=4k a.qed
-o cluster_size=4k nothing
-f foo -o x=1 a.qed
-f raw -o size=1 base.raw
-o help a.qed
-o help
-f qed -o help
-f raw -o help
-o help nothing
-o x=1 -t foo a.qed
-t none -o x=1 a.qed
-p -q -o x=1 a.qed
-pqo x=1 a.qed
-o x=1 a b
-o , a.qed
--force -o size=1 a.qed
--image-opts -o size=1 driver=qed,file.filename=a.qed
--image-opts -f qed -o size=1 driver=qed,file.filename=a.qed
-o size=1
-o help -f foo
-o size=1 base.raw
-u a.qed
--object foo,id=x -o x=1 a.qed
"""


@pytest.mark.parametrize("words", MEASURE.strip().splitlines())
def test_measure_says_the_same(words: str, twins: Twins) -> None:
    twins.run(f"measure {words}", files=False)


@pytest.mark.parametrize("words", SNAPSHOT.strip().splitlines())
def test_snapshot_says_the_same(words: str, twins: Twins) -> None:
    twins.run(f"snapshot {words}", files=False)


@pytest.mark.parametrize("words", AMEND.strip().splitlines())
def test_amend_says_the_same(words: str, twins: Twins) -> None:
    twins.run(f"amend {words}", files=False)


@pytest.mark.parametrize("words", ["-x a.qed", "--foo a.qed", "--size", "-O"])
def test_measure_of_wrong_options_is_refused(words: str, twins: Twins) -> None:
    """qemu-img prints its whole help there, on stdout, and ends with 0."""
    ours = twins.ours(f"measure {words}")
    assert (ours.code, ours.out, ours.err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("a.qed", ()),
        ("base.raw", ()),
        ("ov2.qed", ()),
        ("-o cluster_size=4k,table_size=2 a.qed", ("-o", "cluster_size=4k,table_size=2")),
    ],
)
def test_measure_of_qed_is_what_convert_makes(
    words: str, options: tuple[str, ...], twins: Twins, tmp_path: Path
) -> None:
    """qemu-img has no answer here."""
    assert twins.theirs(f"measure -O qed {words}").code == 1
    ours = twins.ours(f"measure --output=json -O qed {words}")
    assert (ours.code, ours.err) == (0, "")
    source = twins.mine / words.split()[-1]
    qemu.img("convert", "-O", "qed", *options, source, tmp_path / "x.qed")
    found = json.loads(ours.out)
    made = (tmp_path / "x.qed").stat().st_size
    # Smaller clusters may turn out to be zeroes, which only reading them tells.
    assert found["required"] >= made if options else found["required"] == made
    assert found["fully-allocated"] >= found["required"]


def test_measure_of_an_empty_qed_image_is_what_create_makes(twins: Twins, tmp_path: Path) -> None:
    ours = twins.ours("measure --output=json -O qed --size 1G")
    qemu.create(tmp_path / "x.qed", 1 << 30)
    assert json.loads(ours.out)["required"] == (tmp_path / "x.qed").stat().st_size
