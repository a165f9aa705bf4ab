"""``qedasync bench`` in qemu-img's form beside the real one: lines, exit codes, what is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.differential import Outcome, Twins, call
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


def build(folder: Path) -> None:
    """A QED image and a raw one of 1 MiB, one of 100 KiB, a small file."""
    qemu.create(folder / "a.qed", 1 << 20)
    qemu.io(folder / "a.qed", "write -P 1 0 64k")
    qemu.create(folder / "o.qed", 100 << 10)
    (folder / "a.raw").write_bytes(bytes(1 << 20))
    (folder / "junk").write_bytes(b"junk")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    build(folder)
    return folder


@pytest.fixture
def twins(tmp_path: Path, original: Path) -> Twins:
    return Twins(tmp_path, original)


def without_time(text: str) -> str:
    """The one thing that may differ."""
    return re.sub(r"in \d+\.\d{3} seconds", "in T seconds", text)


READS = [
    "-c 3 a.qed",
    "a.qed -c 3 --",
    "-c 10 -d 4 -s 64k -S 128k -o 4k a.qed",
    "-c 1000 -d 100 a.qed",
    "-c 300 -s 512 -o 1000k a.qed",
    "-c 5 -S 3 -s 5 a.qed",
    "-c 5 -S 0 -s 1k a.qed",
    "-c 0 a.qed",
    "-c 20 -s 0 a.qed",
    "-c +3 a.qed",
    "-c 0x10 a.qed",
    "-c 010 a.qed",
    "-c 1 -S 2147483647 a.qed",
    "-c 2 -d 100000 a.qed",
    "-c 3 -q a.qed",
    "-c 3 -U a.qed",
    "-c 3 -f raw a.qed",
    "-c 3 -f qed a.qed",
    "-c 3 --pattern=3 a.qed",
    "-c 3 -t unsafe a.qed",
    "-c 3 -t writethrough a.qed",
    "-c 3 -i threads a.qed",
    "-c 3 a.raw",
    "-c 3 --image-opts driver=qed,file.driver=file,file.filename=a.qed",
    "-qUc3 a.qed",
    "-c 3 --flush-interval=0 a.qed",
]


@pytest.mark.parametrize("words", READS)
def test_bench_of_reads_says_what_qemu_img_says(twins: Twins, words: str) -> None:
    ours = twins.run(f"bench {words}", filter=without_time)
    assert ours.code == 0
    assert "Run completed in " in ours.out


WRITES = [
    "-w -c 3 a.qed",
    "-w -c 300 -d 8 --pattern=0xff -o 7 -s 700 -S 300 a.qed",
    "-w -c 10 -d 4 --flush-interval=5 a.qed",
    "-w -c 10 -d 4 --flush-interval=4 --no-drain a.qed",
    "-w -c 10 -d 4 --no-drain a.qed",
    "-w -c 10 -d 4 --flush-interval=100 --pattern 7 a.qed",
    "-w -c 100 -d 1 -s 64k -t unsafe --pattern 9 a.qed",
    "-w -c 100 -s 8k -o 97k --pattern 5 -f raw a.raw",
    "-w -c 5 -t writethrough a.qed",
    "-w -c 20 -s 0 a.qed",
]


@pytest.mark.parametrize("words", WRITES)
def test_bench_of_writes_leaves_what_qemu_img_leaves(twins: Twins, words: str) -> None:
    assert twins.run(f"bench {words}", filter=without_time).code == 0


WRONG = [
    "",
    "a.qed o.qed",
    "nothing.qed",
    "-c -1 a.qed",
    "-c x a.qed",
    "-c 1k a.qed",
    "-c 1.5 a.qed",
    "-c 08 a.qed",
    "-c 2147483648 a.qed",
    "-c",
    "-d x a.qed",
    "-d -1 a.qed",
    "-d 2147483648 a.qed",
    "-s x a.qed",
    "-s 4G a.qed",
    "-S x a.qed",
    "-S 2147483648 a.qed",
    "-o x a.qed",
    "-o -1 a.qed",
    "-o 8E a.qed",
    "-t foo a.qed",
    "-i foo a.qed",
    "-i native a.qed",
    "-n a.qed",
    "--pattern=x a.qed",
    "--pattern=300 a.qed",
    "--pattern=-1 a.qed",
    "--flush-interval=x a.qed",
    "--flush-interval=-1 a.qed",
    "--flush-interval=2147483648 a.qed",
    "--flush-interval=70 a.qed",
    "-w -d 4 --flush-interval=3 a.qed",
    "--bogus",
    "-Z a.qed",
    "--rw randread a.qed",
    "--iodepth=3 a.qed",
    "-f foo a.qed",
    "-f qed a.raw",
    "--image-opts -f qed driver=qed,file.filename=a.qed",
    "--object secret,id=x,data=y a.qed",
    "-w -U -c 1 a.qed",
    "-c x -t foo a.qed",
    "-t foo -i foo a.qed",
    "-t foo --flush-interval=70 a.qed",
    "-t foo nothing.qed",
    "-n nothing.qed",
]


@pytest.mark.parametrize("words", WRONG)
def test_bench_wrong_words_are_refused_as_qemu_img_does(twins: Twins, words: str) -> None:
    assert twins.run(f"bench {words}").code == 1


FAILING = [
    "-o 2M -c 1 a.qed",
    "-s 2M -c 2 a.qed",
    "-w -s 2M -c 2 a.qed",
    "-c 100 -s 101k o.qed",
    "-w -c 100 -d 1 -s 8k -o 97k o.qed",
    "-c 1 junk",
    "-c 1 -o 9223372036854775807 a.qed",
]


@pytest.mark.parametrize("words", FAILING)
def test_bench_failing_request_ends_it_as_in_qemu_img(twins: Twins, words: str) -> None:
    ours = twins.run(f"bench {words}", filter=without_time)
    assert ours.err == "qemu-img: Failed request: Input/output error\n"


@pytest.mark.parametrize("size", ["0", "1M"])
@pytest.mark.parametrize("words", ["-d 0 -c 1", "-c 1 -w"])
def test_bench_where_qemu_img_hangs_or_dies_is_one_line(
    tmp_path: Path, words: str, size: str
) -> None:
    call(f"create -q -f qed z.qed {size}", tmp_path)
    ours = call(f"bench {words} z.qed", tmp_path, tool="qemu-img")
    if "-d 0" in words:
        assert ours == Outcome(1, "", "qemu-img: Invalid queue depth specified\n")
    elif size == "0":
        assert (ours.code, ours.err) == (1, "qemu-img: Failed request: Input/output error\n")
    else:
        assert ours.code == 0


def test_bench_backing_policy_holds_here_too(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for words in (
        "create -q -f qed far/base.qed 1M",
        "create -q -u -f qed -b far/base.qed -F qed ov.qed 1M",
    ):
        assert call(words, tmp_path).code == 0
    refused = call("bench -c 1 ov.qed", tmp_path)
    assert refused.code == 1
    assert "--backing any" in refused.err
    assert call("bench --backing any -c 1 ov.qed", tmp_path).code == 0


# ------------------------------------------------------------------ which form it is


@pytest.mark.parametrize("words", ["-c 5", "-f qed -d 3 -c 2", "-U -c 1", "-w -c 4 --no-drain"])
def test_bench_with_qemu_img_s_options_only_is_its_form(original: Path, words: str) -> None:
    ours = call(f"bench {words} a.qed", original)
    assert ours.out.startswith("Sending ")
    assert ours.out.count("\n") == 2


@pytest.mark.parametrize(
    "words", ["--iodepth 3 -c 5", "--rw randread -c 5", "--output json -c 5 -d 2", "-c 5 --seed 1"]
)
def test_bench_with_a_word_of_fio_s_is_its_form(original: Path, words: str) -> None:
    ours = call(f"bench {words} a.qed", original)
    assert ours.code == 0
    assert "Sending" not in ours.out
    assert "lat_ns" in ours.out or "clat percentiles" in ours.out


def test_bench_letters_beside_fio_s_words_mean_the_same(original: Path) -> None:
    ours = call("bench --rw read -c 9 -d 3 -s 8k -o 64k a.qed", original)
    assert "bs=(R) 8192B-8192B" in ours.out
    assert "iodepth=3" in ours.out
    assert "issued rwts: total=9,0,0,0" in ours.out


def test_bench_step_beside_fio_s_words_is_refused(original: Path) -> None:
    ours = call("bench --rw read -S 8k a.qed", original)
    assert ours.err == "qedasync: -S goes with qemu-img's options, not with fio's\n"
