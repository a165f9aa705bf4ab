"""Two generations of slices under a budget; ``young`` is what the hot path holds on to."""

from __future__ import annotations

from array import array

from qedasync.engine.l2_cache import L2Cache

COST = 4096 + 512


def entries(value: int = 0) -> array[int]:
    return array("Q", [value])


def filled(budget: int, count: int) -> L2Cache:
    cache = L2Cache(budget)
    for number in range(count):
        cache.put(number, entries(number), sound=True)
    return cache


def test_put_sound_slice_is_young() -> None:
    cache = filled(0, 1)
    assert cache.young == {0: entries(0)}
    assert cache[0] is cache.young[0]


def test_put_unsound_slice_is_found_but_never_young() -> None:
    cache = L2Cache(0)
    cache.put(7, entries(5), sound=False)
    assert cache.get(7) == entries(5)
    assert cache.young == {}
    assert list(cache) == [7]


def test_put_again_replaces_whichever_generation_had_it() -> None:
    for sound in (True, False):
        cache = L2Cache(0)
        cache.put(7, entries(5), sound=not sound)
        cache.put(7, entries(6), sound=sound)
        assert cache[7] == entries(6)
        assert len(cache) == 1


def test_young_keeps_its_identity_whatever_happens() -> None:
    cache = L2Cache(0)
    young = cache.young
    for number in range(20):
        cache.put(number, entries(), sound=True)
    cache.get(17)
    cache.discard(17)
    cache.clear()
    assert cache.young is young
    assert young == {}


def test_put_beyond_budget_forgets_the_oldest_generation() -> None:
    cache = filled(8 * COST, 100)
    assert len(cache) <= 8
    assert 99 in cache
    assert 0 not in cache


def test_put_without_budget_keeps_a_few_slices() -> None:
    assert 2 <= len(filled(0, 50)) <= 4


def test_get_old_slice_makes_it_young_so_it_survives() -> None:
    cache = filled(4 * COST, 2)
    cache.put(2, entries(2), sound=True)
    assert 0 not in cache.young
    assert cache.get(0) == entries(0)
    assert 0 in cache.young
    cache.put(3, entries(3), sound=True)
    assert cache.get(0) == entries(0)


def test_get_missing_slice_answers_none_and_subscript_raises() -> None:
    cache = L2Cache(0)
    assert cache.get(1) is None
    assert 1 not in cache


def test_discard_forgets_in_every_generation() -> None:
    cache = filled(4 * COST, 3)
    cache.put(9, entries(), sound=False)
    for number in (0, 2, 9):
        assert number in list(cache)
        cache.discard(number)
        assert number not in list(cache)
    cache.discard(12345)


def test_put_many_unsound_slices_is_bounded() -> None:
    cache = L2Cache(1 << 30)
    for number in range(1000):
        cache.put(number, entries(), sound=False)
    assert len(cache.suspect) <= 16
    assert 999 in cache
