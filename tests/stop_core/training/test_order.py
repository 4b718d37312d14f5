"""The order by shards: every clip once, from many shards, and each shard on one machine."""

import math
from dataclasses import replace
from unittest.mock import patch

import pytest

from stop_core.runtime import distributed
from stop_core.runtime.distributed import my_block
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training.order import MIXED_SHARDS, epoch_batches

BY_SHARDS = ExperimentConfig(batch_size=8, training=TrainingOptions(shuffle="shards"))


def _shards(clips: int, rows: int = 64) -> list[str]:
    return [f"train-{clip // rows:05d}" for clip in range(clips)]


def _batches(clips: int, config: ExperimentConfig, epoch: int = 0) -> list[list[int]]:
    return epoch_batches(clips, config, epoch, _shards(clips))


@pytest.mark.parametrize(("clips", "batch"), [(1000, 32), (640, 64), (1, 8), (65, 64), (70, 1)])
def test_an_epoch_has_every_clip_once_in_whole_batches(clips: int, batch: int) -> None:
    config = replace(BY_SHARDS, batch_size=batch)
    batches = _batches(clips, config)
    assert sorted(clip for one in batches for clip in one) == list(range(clips))
    assert len(batches) == config.lengths(clips)[0] == math.ceil(clips / batch)
    assert {len(one) for one in batches[:-1]} <= {batch}


def test_the_order_depends_only_on_seed_epoch_and_batch_size() -> None:
    order = _batches(2000, BY_SHARDS, 1)
    assert _batches(2000, BY_SHARDS, 1) == order
    with patch.object(distributed, "world_size", lambda: 4):
        assert _batches(2000, BY_SHARDS, 1) == order, "not on the workers"
    for other in (_batches(2000, BY_SHARDS, 2), _batches(2000, replace(BY_SHARDS, seed=1), 1)):
        assert other != order


def test_a_batch_mixes_many_shards_and_an_epoch_reads_each_on_one_machine() -> None:
    """4 machines of 8 workers, 1,000 shards, batches of 256."""
    clips, config, machines = 64_000, replace(BY_SHARDS, batch_size=256), 4
    shards, batches = _shards(clips), _batches(clips, config)
    mixed = [len({shards[clip] for clip in batch}) for batch in batches]
    assert min(mixed) >= MIXED_SHARDS / 2
    assert min(mixed[70:-70]) > 0.9 * MIXED_SHARDS
    readers: dict[str, set[int]] = {}
    at_once = [0] * machines
    with patch.object(distributed, "world_size", lambda: 32):
        for number in range(0, len(batches), 10):
            for machine in range(machines):
                window = {
                    shards[clip]
                    for batch in batches[number : number + 10]
                    for rank in range(8 * machine, 8 * machine + 8)
                    for clip in my_block(batch, rank)
                }
                at_once[machine] = max(at_once[machine], len(window))
                for shard in window:
                    readers.setdefault(shard, set()).add(machine)
    assert len(readers) == 1000
    assert sum(len(some) > 1 for some in readers.values()) < machines
    assert max(at_once) < 2 * 256 / machines, "few shards are needed at a time"


@pytest.mark.parametrize("machines", [2, 4, 16])
def test_a_machine_has_the_same_shards_in_every_epoch(machines: int) -> None:
    clips, config = 32_000, replace(BY_SHARDS, batch_size=64)
    shards, read = _shards(clips), []
    with patch.object(distributed, "world_size", lambda: machines):
        for epoch in range(3):
            batches = _batches(clips, config, epoch)
            mine = [[shards[clip] for clip in my_block(batch, 1)] for batch in batches]
            read.append([name for names in mine for name in names])
    assert set(read[0]) == set(read[1]) == set(read[2])
    assert len(set(read[0])) <= 500 / machines + 2
    assert read[0] != read[1] != read[2], "in another order"


def test_a_shard_is_needed_once_in_an_epoch_not_at_its_start_and_its_end() -> None:
    """Lanes that share a shard read it at the same time."""
    clips, config = 64_000, replace(BY_SHARDS, batch_size=256)
    shards = _shards(clips)
    used: dict[str, set[int]] = {}
    for number, batch in enumerate(_batches(clips, config)):
        for clip in batch:
            used.setdefault(shards[clip], set()).add(number)
    assert config.lengths(clips)[0] == 250
    assert max(max(some) - min(some) for some in used.values()) <= 64


def test_the_order_is_part_of_the_experiment_and_earlier_hashes_stay() -> None:
    usual = replace(BY_SHARDS, training=TrainingOptions())
    assert usual.training.shuffle == "global"
    assert usual.hash != BY_SHARDS.hash
    assert replace(usual, training=TrainingOptions(shuffle="global")).hash == usual.hash


def test_clips_that_are_mixed_with_any_other_are_not_read_by_shards() -> None:
    with pytest.raises(ValueError, match=r"mixup is 0\.5, .* shuffle is shards; leave one"):
        TrainingOptions(mixup=0.5, shuffle="shards")
    with pytest.raises(ValueError, match="shuffle must be global or shards"):
        TrainingOptions(shuffle="none")  # type: ignore[arg-type]
