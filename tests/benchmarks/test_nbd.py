"""The NBD cases' rows: who is the rival, and who stands beside."""

from __future__ import annotations

from benchmarks.nbd import NBD_CASES, NbdResult


def result(*servers: str) -> NbdResult:
    found = NbdResult(NBD_CASES[0])
    for number, server in enumerate(servers, 1):
        found.add(server, 10.0 * number, 1.0)
    return found


def test_row_rival_is_the_server_as_it_runs_unless_told() -> None:
    row = result("ours", "threads", "io_uring").row()
    assert [(side.name, side.role) for side in row.sides] == [
        ("qedasync serve", "ours"),
        ("qemu-nbd", "rival"),
        ("qemu-nbd --aio=io_uring", "other"),
    ]
    assert row.ratio == 2.0
    assert row.ratio_beside(row.sides[2]) == 3.0
    assert row.sides[0].cpu == [1.0 / NBD_CASES[0].count]


def test_row_case_without_bar_promises_nothing() -> None:
    found = result("ours", "threads")
    found.case = next(case for case in NBD_CASES if not case.bar)
    assert found.row().bar is None
