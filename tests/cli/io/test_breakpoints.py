"""break, wait_break, resume and remove_break beside qemu-io's."""

from __future__ import annotations

import pytest

from tests.cli.differential import Twins
from tests.cli.io.pair import blocks, run_block
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2

SAME = """
blkdebug::a.qed
break nope A
break write_aio A
info

blkdebug::a.qed
resume A
remove_break A
break write_aio A
remove_break A
remove_break A
write 0 512

blkdebug::a.qed
break write_aio A
aio_write 0 512
wait_break A
length
resume A
aio_flush
map

blkdebug::a.qed
break write_aio A
aio_write 0 512
wait_break A
read 0 512
remove_break A
aio_flush

blkdebug::a.qed
break pwritev A
aio_write 0 512
wait_break A
resume A
aio_flush

blkdebug::a.qed
break pwritev_done A
aio_write 0 512
wait_break A
resume A
aio_flush

blkdebug::b.qed
break read_aio A
aio_read -v 64k 20
wait_break A
read -q 64k 20
resume A
aio_flush
read 64k 20

blkdebug::b.qed
break l2_update A
aio_write -P 5 0 64k
wait_break A
length
resume A
aio_flush
read -P 5 0 64k
map

blkdebug::a.qed
break l1_update A
aio_write -P 5 0 64k
wait_break A
resume A
aio_flush
read -P 5 0 64k

blkdebug::ov.qed
break cow_write A
aio_write -P 5 130k 1k
wait_break A
resume A
aio_flush
read -P 3 131k 1k

blkdebug::a.qed
break write_aio A
aio_write -P 1 0 64k
wait_break A
aio_write -P 2 0 64k
sleep 20
resume A
aio_flush
read -P 2 0 64k

blkdebug::a.qed
break write_aio A
break write_aio B
remove_break B
aio_write 0 512
wait_break A
resume B
resume A
aio_flush

blkdebug::a.qed
break write_aio A
break write_aio B
aio_write 0 512
wait_break A
wait_break B
resume A
length
resume A
resume B
aio_flush

blkdebug::a.qed
break write_aio A
break write_aio B
break write_aio C
aio_write 0 512
wait_break C
resume B
remove_break C
length
resume A
aio_flush
read 0 512

blkdebug::a.qed
break write_aio A
break write_aio A
aio_write 0 512
wait_break A
resume A
length
resume A
aio_flush

blkdebug::a.qed
break write_aio A
break write_aio A
break read_aio A
aio_write 0 512
wait_break A
remove_break A
aio_flush
read 0 512

blkdebug::b.qed
break read_aio A
break read_aio B
aio_read 64k 512
wait_break A
aio_read -q 65k 512
resume B
resume A
aio_flush

blkdebug::ov.qed
break read_backing_aio A
aio_read 64k 1k
aio_flush
aio_read -P 3 128k 1k
wait_break A
resume A
aio_flush

blkdebug::ov.qed
break read_backing_aio A
break read_backing_aio B
aio_write -P 5 130k 1k
wait_break B
resume B
resume A
aio_flush
read -P 3 131k 1k

blkdebug::b.qed
break read_aio A
aio_write -q 64k 100
wait_break A
resume A
aio_flush
read -P 205 64k 100
"""


@pytest.mark.parametrize(("options", "commands"), blocks(SAME))
def test_breakpoints_like_qemu_io(twins: Twins, options: str, commands: list[str]) -> None:
    run_block(twins, options, commands)


def ours(twins: Twins, *commands: str) -> list[str]:
    """What our program prints for commands on an image with a blkdebug."""
    words = [word for command in commands for word in ("-c", command)]
    return twins.ours([*words, "blkdebug::b.qed"], tool="qemu-io").out.splitlines()


def test_write_that_stands_does_not_hold_up_reads(twins: Twins) -> None:
    said = ours(
        twins,
        "break write_aio A",
        "aio_write -q 512k 64k",
        "wait_break A",
        "read 64k 512",
        "read 0 512",
        "resume A",
    )
    resumed = said.index("blkdebug: Resuming request 'A'")
    assert [line for line in said[:resumed] if line.startswith("read")] == [
        "read 512/512 bytes at offset 65536",
        "read 512/512 bytes at offset 0",
    ]


def test_end_with_request_at_breakpoint_lets_it_go(twins: Twins) -> None:
    """qemu-io waits for ever."""
    said = ours(twins, "break write_aio A", "aio_write 0 64k", "wait_break A")
    assert said[1] == "wrote 65536/65536 bytes at offset 0"


def test_close_with_request_at_breakpoint_lets_it_go(twins: Twins) -> None:
    """qemu-io waits for ever."""
    said = ours(
        twins,
        "break write_aio A",
        "aio_write -qP 8 0 64k",
        "wait_break A",
        "close",
        "open b.qed",
        "read -P 8 0 64k",
    )
    assert said[1] == "read 65536/65536 bytes at offset 0"


def test_reopen_keeps_breakpoints(twins: Twins) -> None:
    said = ours(
        twins,
        "break write_aio A",
        "reopen -r",
        "reopen -w",
        "aio_write -q 0 64k",
        "wait_break A",
        "resume A",
    )
    assert said == ["blkdebug: Suspended request 'A'", "blkdebug: Resuming request 'A'"]


def test_wait_break_without_blkdebug_fails(twins: Twins) -> None:
    """qemu-io waits for ever."""
    outcome = twins.ours(["-c", "wait_break A", "a.qed"], tool="qemu-io")
    assert outcome.out == "Could not wait for breakpoint A: Operation not supported\n"
    assert outcome.code == 1
