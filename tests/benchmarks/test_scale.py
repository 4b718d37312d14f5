"""The arithmetic of the model: exact counts, and the slowest part; no time is asserted."""

import itertools
import math
from dataclasses import replace

import pytest

from benchmarks.scale import S3, Storage, Work, count_fetches, end_of_steps, epoch_orders, model
from stop_core.settings.training import Shuffle

WORK = Work("", clip_bytes=1e6, read=1.0, batch=64, step=1.0, gradients=0.0, clips=2560, rows=8)


def fewest_fetches(order: tuple[int, ...], room: int) -> int:
    """Tries all that can make room."""
    states = {frozenset[int](): 0}
    for shard in order:
        following: dict[frozenset[int], int] = {}
        for there, count in states.items():
            fuller = there | {shard}
            small = [fuller] if len(fuller) <= room else [fuller - {old} for old in there]
            for state in small:
                cost = count + (shard not in there)
                following[state] = min(cost, following.get(state, cost))
        states = following
    return min(states.values())


def test_no_choice_of_what_makes_room_fetches_fewer() -> None:
    for order in itertools.product(range(4), repeat=5):
        for room in (1, 2, 3, 4):
            counts, _ = count_fetches([order[:3], order[3:]], room)
            assert sum(counts) == fewest_fetches(order, room), (order, room)


def test_what_is_there_is_not_fetched() -> None:
    assert count_fetches([[0, 1], [2, 0]], 3, held=[1, 2, 9]) == ([1, 0], [0, 1, 2])
    assert count_fetches([[0, 1]], 3, held=[0, 1, 2]) == ([0], [0, 1, 2])


def test_a_step_waits_for_the_shards_of_its_clips_and_for_the_step_before() -> None:
    assert end_of_steps([5.0, 0.0, 0.0], 1.0) == 8.0
    assert end_of_steps([1.0, 1.0, 1.0], 4.0) == 13.0
    assert end_of_steps([4.0, 4.0, 4.0], 1.0) == 13.0
    assert end_of_steps([1.0, 0.0, 9.0], 2.0) == 12.0


@pytest.mark.parametrize("shuffle", ["global", "shards"])
def test_the_nodes_read_each_clip_once(shuffle: Shuffle) -> None:
    nodes = [epoch_orders(WORK, 256, 4, shuffle, 2, node) for node in range(4)]
    for epoch in range(2):
        steps = zip(*(batches[epoch] for batches in nodes), strict=True)
        whole = [[clip for part in step for clip in part] for step in steps]
        assert [len(step) for step in whole] == [256] * 10
        assert sorted(itertools.chain.from_iterable(whole)) == list(range(2560))


def test_by_shards_the_nodes_fetch_the_cache_once_and_all_of_it_by_a_global_shuffle() -> None:
    by_shards = Storage("", S3, copies=1e12, shuffle="shards")
    whole = WORK.clips * WORK.clip_bytes
    first, second, third = model(WORK, by_shards, 4, per_node=1)
    assert whole / 4 <= first.fetched <= whole / 4 + 4 * WORK.shard_bytes
    assert second.fetched == third.fetched == 0, "a node keeps its part"
    assert [one.fetched for one in model(WORK, replace(by_shards, shuffle="global"), 4)] == [
        *(whole, 0, 0)
    ]


def test_an_epoch_lasts_as_long_as_its_slowest_part() -> None:
    slow = Storage("", node=1e6, copies=1e12, shuffle="shards")
    epoch = model(WORK, slow, 4, per_node=1)[0]
    assert epoch.compute == 10
    assert epoch.seconds >= epoch.fetched / 1e6 > epoch.compute
    assert epoch.busy == pytest.approx(10 / epoch.seconds)
    assert epoch.waits_for == "network"
    assert model(WORK, Storage("", math.inf), 4)[0].busy == pytest.approx(1.0, abs=0.01)
    server = model(WORK, Storage("", S3, shared=4e6), 4, per_node=1)[0]
    assert (server.seconds, server.waits_for) == (641.0, "server")
