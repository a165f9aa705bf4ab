"""The storage that fails or stops at named steps, on its own."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

import qedasync
from qedasync import Event
from qedasync.cli.nodes.blkdebug import BlkdebugStorage
from qedasync.cli.nodes.rules import Rules, take_rules
from qedasync.cli.options import ToolError


def storage(*rules: dict[str, Any], **options: Any) -> BlkdebugStorage:
    """Over 64 KiB of memory, with such inject-error rules."""
    for at, rule in enumerate(rules):
        options |= {f"inject-error.{at}.{key}": value for key, value in rule.items()}
    inner = qedasync.MemoryStorage(bytes(65536))
    return BlkdebugStorage(inner, take_rules(options, writable=True))


async def outcome(call: Any) -> int:
    """The error number that a call ends with, or 0."""
    try:
        await call
    except qedasync.StorageError as error:
        return error.errno or 0
    return 0


def read(disk: BlkdebugStorage, offset: int = 0, event: Event = Event.READ_AIO) -> Any:
    return outcome(disk.read_into([bytearray(512)], offset, event))


def write(disk: BlkdebugStorage, offset: int = 0, event: Event = Event.WRITE_AIO) -> Any:
    return outcome(disk.write([bytes(512)], offset, event))


async def test_rule_is_for_all_requests_from_its_event_on() -> None:
    disk = storage({"event": "l2_load", "errno": errno.ENOSPC})
    assert [await read(disk), await write(disk)] == [0, 0]
    assert await read(disk, event=Event.L2_LOAD) == errno.ENOSPC
    assert [await read(disk), await write(disk)] == [errno.ENOSPC] * 2
    assert await outcome(disk.flush()) == errno.ENOSPC
    await disk.close()


async def test_rule_once_is_for_one_request_and_then_gone() -> None:
    disk = storage({"event": "read_aio", "once": True})
    assert [await read(disk) for _ in range(3)] == [errno.EIO, 0, 0]
    await disk.close()


async def test_rule_of_no_event_holds_from_the_start() -> None:
    disk = storage({"event": "none", "sector": 3})
    assert [await read(disk, at) for at in (0, 1024, 1536, 2048)] == [0, 0, errno.EIO, 0]
    await disk.close()


async def test_rule_of_an_iotype_lets_others_pass() -> None:
    disk = storage({"event": "none", "iotype": "write"})
    assert [await read(disk), await write(disk)] == [0, errno.EIO]
    assert await outcome(disk.write_zeroes(0, 512)) == 0
    disk.under_image = True  # QEMU writes zeroes into mapped clusters as data
    assert await outcome(disk.write_zeroes(0, 512)) == errno.EIO
    await disk.close()


async def test_block_status_fails_only_if_a_rule_says_so() -> None:
    assert await outcome(storage({"event": "none"}).next_data(0)) == 0
    disk = storage({"event": "none", "iotype": "block-status"})
    assert [await outcome(disk.next_data(0)), await read(disk)] == [errno.EIO, 0]


async def test_rules_of_the_next_event_take_the_place_of_those_before() -> None:
    disk = storage({"event": "read_aio", "errno": 5}, {"event": "write_aio", "errno": 28})
    assert [await read(disk), await write(disk)] == [5, 28]
    assert await read(disk, event=Event.HEADER_LOAD) == 28
    assert await read(disk) == 5
    await disk.close()


async def test_rule_of_errno_0_takes_the_place_of_another() -> None:
    disk = storage({"event": "read_aio"}, {"event": "l2_load", "errno": 0})
    assert [await read(disk), await read(disk, event=Event.L2_LOAD)] == [errno.EIO, 0]
    await disk.close()


async def test_states_go_on_event_by_event() -> None:
    disk = storage(
        {"event": "write_aio", "state": 2, "once": True},
        **{
            "set-state.0.event": "read_aio",
            "set-state.0.state": 1,
            "set-state.0.new_state": 2,
        },
    )
    assert [await write(disk), await read(disk), await write(disk)] == [0, 0, errno.EIO]
    await disk.close()


async def test_several_state_changes_the_first_counts() -> None:
    changes = {"set-state.0.new_state": 3, "set-state.1.new_state": 4}
    events = {"set-state.0.event": "read_aio", "set-state.1.event": "read_aio"}
    disk = storage({"event": "write_aio", "state": 3}, **changes, **events)
    await read(disk)
    assert await write(disk) == errno.EIO
    await disk.close()


@pytest.mark.parametrize(("immediately", "turns"), [(True, 0), (False, 1)])
async def test_error_that_is_not_immediate_gives_others_a_turn(
    immediately: bool, turns: int
) -> None:
    disk = storage({"event": "none", "immediately": immediately})
    seen: list[int] = []
    asyncio.get_running_loop().call_soon(seen.append, 1)
    assert await read(disk) == errno.EIO
    assert len(seen) == turns
    await asyncio.sleep(0)
    await disk.close()


async def test_step_that_qemu_has_no_name_for_is_no_event() -> None:
    disk = storage({"event": "cluster_alloc"}, {"event": "cow_read"})
    for event in (Event.HEADER_LOAD, Event.L1_LOAD, Event.CLUSTER_ALLOC, Event.CREATE):
        assert await read(disk, event=event) == 0
    await disk.truncate(1 << 17, Event.CLUSTER_ALLOC)
    assert await read(disk) == 0
    await disk.close()


async def test_new_l2_table_is_an_l2_update() -> None:
    disk = storage({"event": "l2_update", "once": True}, {"event": "l2_alloc_write"})
    assert await write(disk, event=Event.L2_ALLOC_WRITE) == errno.EIO
    assert await write(disk, event=Event.L2_ALLOC_WRITE) == 0
    await disk.close()


@pytest.mark.parametrize("event", ["pwritev", "pwritev_done", "pwritev_zero"])
async def test_events_of_every_write_need_no_image(event: str) -> None:
    disk = storage({"event": event, "errno": 28})
    found = [await write(disk), await write(disk), await outcome(disk.write_zeroes(0, 512))]
    expected = {"pwritev": [28, 28, 28], "pwritev_done": [0, 28, 28], "pwritev_zero": [0, 0, 28]}
    assert found == expected[event]
    await disk.close()


async def test_failed_write_leaves_the_bytes_and_a_good_one_does_not() -> None:
    disk = storage({"event": "write_aio", "once": True})
    content = bytearray(4)
    for expected in (b"\0\0\0\0", b"data"):
        await outcome(disk.write([b"data"], 0))
        await disk.read_into([content], 0)
        assert bytes(content) == expected
    await disk.close()


async def test_flush_of_nothing_meets_no_rule() -> None:
    disk = storage({"event": "none", "iotype": "flush"})
    assert await outcome(disk.flush()) == 0
    await write(disk)
    assert [await outcome(disk.flush()) for _ in range(2)] == [errno.EIO, errno.EIO]
    await disk.close()


async def test_unaligned_write_reads_its_margins_first() -> None:
    disk = storage({"event": "pwritev_rmw_tail"}, align=4096)
    assert await write(disk, 0) == errno.EIO
    disk = storage({"event": "pwritev_rmw_head"}, align=4096)
    assert [await write(disk, 0), await write(disk, 512)] == [0, errno.EIO]
    disk = storage({"event": "pwritev_rmw_tail"}, align=512)
    assert await write(disk, 0) == 0


async def test_sector_within_the_aligned_request_counts() -> None:
    disk = storage({"event": "none", "sector": 7}, align=4096)
    assert await read(disk, 0) == errno.EIO


# ---------------------------------------------------------------- breakpoints


async def test_break_stops_a_request_until_it_is_resumed() -> None:
    disk = storage()
    disk.debugger.add_break("read_aio", "A")
    task = asyncio.create_task(read(disk))
    await disk.debugger.wait_break("A")
    assert disk.debugger.is_suspended("A")
    assert not task.done()
    assert disk.debugger.resume("A")
    assert await task == 0
    assert not disk.debugger.is_suspended("A")
    assert await read(disk) == 0  # it is gone
    await disk.close()


async def test_break_of_one_tag_holds_several_requests() -> None:
    disk = storage()
    disk.debugger.add_break("read_aio", "A")
    disk.debugger.add_break("write_aio", "A")
    tasks = [asyncio.create_task(read(disk)), asyncio.create_task(write(disk))]
    await asyncio.sleep(0)
    assert disk.debugger.resume("A")
    assert disk.debugger.is_suspended("A")
    assert disk.debugger.resume("A")
    assert not disk.debugger.resume("A")
    assert [await task for task in tasks] == [0, 0]
    await disk.close()


async def test_remove_break_forgets_it_and_lets_go_what_it_holds() -> None:
    disk = storage()
    disk.debugger.add_break("read_aio", "A")
    disk.debugger.add_break("l2_load", "A")
    task = asyncio.create_task(read(disk))
    await disk.debugger.wait_break("A")
    assert disk.debugger.remove_break("A")
    assert await task == 0
    assert await read(disk, event=Event.L2_LOAD) == 0
    assert not disk.debugger.remove_break("A")
    await disk.close()


async def test_break_of_a_cancelled_request_is_free_again() -> None:
    disk = storage()
    disk.debugger.add_break("read_aio", "A")
    task = asyncio.create_task(read(disk))
    await disk.debugger.wait_break("A")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not disk.debugger.is_suspended("A")
    await disk.close()


async def test_close_lets_go_what_has_stopped() -> None:
    disk = storage()
    disk.debugger.add_break("read_aio", "A")
    task = asyncio.create_task(read(disk))
    await disk.debugger.wait_break("A")
    await disk.close()
    await asyncio.wait([task])
    assert task.done()


def test_break_at_no_event_is_refused() -> None:
    disk = BlkdebugStorage(qedasync.MemoryStorage(b""), Rules())
    with pytest.raises(ToolError):
        disk.debugger.add_break("bogus", "A")
