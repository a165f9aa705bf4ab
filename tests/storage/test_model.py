"""Random requests to every backend against a bytearray."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qedasync.events import Event
from qedasync.storage.base import Storage, Write
from tests.storage.backends import Backend, content, read

LIMIT = 140_000  # more than two chunks of the memory storage

places = st.one_of(
    st.integers(0, LIMIT),
    st.sampled_from([0, 512, 4096, 65_536, 131_072]).flatmap(
        lambda edge: st.integers(max(0, edge - 2), edge + 2)
    ),
)
lengths = st.one_of(st.integers(0, 20), st.integers(0, 70_000))


@dataclass(frozen=True)
class Step:
    """One request; what the numbers mean depends on ``op``."""

    op: str
    offset: int
    length: int
    value: int
    split: int

    @property
    def data(self) -> bytes:
        return bytes([self.value]) * self.length

    @property
    def buffers(self) -> list[bytes]:
        cut = self.split % (self.length + 1)
        return [self.data[:cut], self.data[cut:]]


steps = st.builds(
    Step,
    op=st.sampled_from(["read", "write", "many", "zeroes", "truncate", "next_data"]),
    offset=places,
    length=lengths,
    value=st.integers(1, 255),
    split=st.integers(0, 70_000),
)


def put(model: bytearray, offset: int, data: bytes) -> None:
    if data:
        model.extend(bytes(max(0, offset + len(data) - len(model))))
        model[offset : offset + len(data)] = data


def expected(model: bytearray, offset: int, length: int) -> bytes:
    return bytes(model[offset : offset + length]).ljust(length, b"\0")


async def take(step: Step, storage: Storage, model: bytearray) -> None:
    match step.op:
        case "read":
            got = await read(storage, step.offset, step.length)
            assert got == expected(model, step.offset, step.length), step
        case "write":
            await storage.write(step.buffers, step.offset)
            put(model, step.offset, step.data)
        case "many":
            await take_many(step, storage, model)
        case "zeroes":
            await storage.write_zeroes(step.offset, step.length)
            put(model, step.offset, bytes(step.length))
        case "truncate":
            await storage.truncate(step.offset)
            put(model, 0, bytes(model[: step.offset]).ljust(step.offset, b"\0"))
            del model[step.offset :]
        case "next_data":
            found = await storage.next_data(step.offset)
            assert not any(model[step.offset : found]), step


async def take_many(step: Step, storage: Storage, model: bytearray) -> None:
    """The step's bytes twice, the second time a little further, and a growth."""
    writes = [
        Write(step.offset + shift, step.buffers, step.length, Event.WRITE_AIO)
        for shift in (0, step.split % 7)
    ]
    await storage.write_many(writes, grow_to=step.split)
    put(model, 0, expected(model, 0, max(step.split, len(model))))
    for write in writes:
        put(model, write.offset, step.data)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(steps, max_size=12), initial=st.binary(max_size=50))
@example(plan=[Step("write", 1, 0, 1, 0)], initial=b"")
async def test_storage_random_requests_match_a_bytearray(
    backend: Backend, plan: list[Step], initial: bytes
) -> None:
    model = bytearray(initial)
    async with backend.open(initial) as storage:
        for step in plan:
            await take(step, storage, model)
            assert storage.size == len(model), step
        assert await content(storage) == model
