"""The ledger accepts what an image may answer, and nothing else."""

from __future__ import annotations

import pytest

from qedasync.bench.verify import Ledger, VerifyFailed

BLOCK = 64


def write(ledger: Ledger, offset: int) -> bytes:
    data = ledger.begin_write(offset)
    assert data is not None
    ledger.end_write(offset)
    return data


def read(ledger: Ledger, offset: int, data: bytes) -> None:
    ledger.end_read(offset, ledger.begin_read(offset), data)


def test_read_after_a_write_sees_it() -> None:
    ledger = Ledger(BLOCK)
    read(ledger, 0, write(ledger, 0))
    assert ledger.checked == 1


def test_read_after_two_writes_of_the_first_one_is_refused() -> None:
    ledger = Ledger(BLOCK)
    old = write(ledger, 128)
    write(ledger, 128)
    with pytest.raises(VerifyFailed, match="offset 128: wanted generation 2, found generation 1"):
        read(ledger, 128, old)


def test_read_of_another_block_s_content_is_refused() -> None:
    ledger = Ledger(BLOCK)
    write(ledger, 0)
    with pytest.raises(VerifyFailed, match="offset 0"):
        read(ledger, 0, write(ledger, 64))


def test_read_of_a_lost_write_is_refused() -> None:
    ledger = Ledger(BLOCK)
    write(ledger, 0)
    write(ledger, 0)
    with pytest.raises(VerifyFailed):
        read(ledger, 0, bytes(BLOCK))


def test_read_of_a_lost_first_write_is_refused() -> None:
    ledger = Ledger(BLOCK)
    write(ledger, 0)
    with pytest.raises(VerifyFailed):
        read(ledger, 0, bytes(BLOCK))


def test_read_during_a_write_may_be_a_mixture_of_both() -> None:
    ledger = Ledger(BLOCK)
    old = write(ledger, 0)
    oldest = ledger.begin_read(0)
    new = ledger.begin_write(0)
    assert new is not None
    for cut in range(0, BLOCK + 1, 16):
        ledger.end_read(0, oldest, new[:cut] + old[cut:])
    with pytest.raises(VerifyFailed, match=r"wanted generation 1 to 2.*at byte 16 of the block"):
        ledger.end_read(0, oldest, new[:16] + bytes(16) + old[32:])


def test_read_begun_after_a_write_may_not_show_what_was_before() -> None:
    ledger = Ledger(BLOCK)
    old = write(ledger, 0)
    write(ledger, 0)
    oldest = ledger.begin_read(0)
    ledger.begin_write(0)
    with pytest.raises(VerifyFailed):
        ledger.end_read(0, oldest, old)


def test_read_during_the_first_write_may_show_anything() -> None:
    ledger = Ledger(BLOCK)
    oldest = ledger.begin_read(0)
    ledger.begin_write(0)
    ledger.end_read(0, oldest, b"x" * BLOCK)


def test_block_never_written_must_not_change() -> None:
    ledger = Ledger(BLOCK)
    read(ledger, 0, b"a" * BLOCK)
    read(ledger, 0, b"a" * BLOCK)
    with pytest.raises(VerifyFailed, match="nobody wrote"):
        read(ledger, 0, b"b" * BLOCK)


def test_write_while_one_runs_is_left_out() -> None:
    ledger = Ledger(BLOCK)
    assert ledger.begin_write(0) is not None
    assert ledger.begin_write(0) is None
    assert ledger.begin_write(64) is not None
    ledger.end_write(0)
    assert ledger.begin_write(0) is not None


def test_offsets_are_all_blocks_with_known_content() -> None:
    ledger = Ledger(BLOCK)
    write(ledger, 192)
    read(ledger, 64, bytes(BLOCK))
    assert list(ledger.offsets()) == [64, 192]
