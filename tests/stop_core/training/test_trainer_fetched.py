"""A training on a cache larger than the local disk has the weights of one on the cache itself."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch

from stop_core.cache import CacheConfig, CacheJob, FrameCache, write_shard
from stop_core.cache.fetching import _copies
from stop_core.clip.loading import load_clip
from stop_core.datasets import DATASETS, select_clips
from stop_core.model.methods import build_method
from stop_core.runtime.devices import seed_weights
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training.clip_views import ShownClips
from stop_core.training.objectives import make_objective
from stop_core.training.order import epoch_batches
from stop_core.training.trainer import Trainer
from tests.stop_core.processes import run_together

BY_SHARDS = ExperimentConfig(
    method="vpt-shallow", epochs=2, batch_size=3, training=TrainingOptions(shuffle="shards")
).for_dataset("hmdb51")


def _cache(folder: Path, root: Path) -> FrameCache:
    """Five shards of two training clips."""
    selection = select_clips(DATASETS["hmdb51"].read(root, 1))
    config = CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=2, size=32)
    job = CacheJob.open(folder, config, selection.clips, clips_per_shard=2)
    for plan in job.plans:
        write_shard(plan, config, root, folder)
    job.finish()
    return FrameCache(folder)


def _weights(cache: FrameCache, config: ExperimentConfig) -> dict[str, torch.Tensor]:
    """Trains two epochs, and evaluates after each one."""
    seed_weights(0)
    model = build_method(config, load_clip("tiny"), len(cache.manifest.class_names))
    splits = {
        split: ShownClips(cache.split(split), config, 32, is_trained=split == "train")
        for split in ("train", "val")
    }
    objective = make_objective(model, config, cache.manifest, {**splits})
    trainer = Trainer(model, config, splits["train"], objective, shown=splits["train"].in_epoch)
    for first in range(0, trainer.total_steps, trainer.steps_per_epoch):
        assert len(list(trainer.steps(first))) == trainer.steps_per_epoch
        metrics = objective.measure(splits["val"]).metrics
    scores = {name: torch.tensor(value) for name, value in metrics.items()}
    return model.prompt_state_dict() | scores


@pytest.mark.parametrize("shuffle", ["global", "shards"])
def test_a_cache_larger_than_the_bound_trains_to_the_same_weights(
    hmdb51_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shuffle: Literal["global", "shards"],
) -> None:
    monkeypatch.setenv("STOP_CACHE_FOLDER", str(tmp_path / "local"))
    cache = _cache(tmp_path / "cache", hmdb51_root)
    sizes = [entry.file_bytes for entry in cache.manifest.shards]
    bound = 2 * max(sizes)
    assert sum(sizes) > 3 * bound
    config = replace(BY_SHARDS, training=TrainingOptions(shuffle=shuffle))
    small = FrameCache(cache.path, bound)
    found = _weights(small, config)
    assert 0 < sum(status.st_size for _, status in _copies()) <= bound
    expected = _weights(cache, config)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    clips = small.split("train")
    shown = [clip for batch in epoch_batches(len(clips), config, 0, clips.shards) for clip in batch]
    assert sorted(shown) == list(range(10))


def _train_together(rank: int, cache: Path, local: Path) -> dict[str, torch.Tensor]:
    os.environ["STOP_CACHE_FOLDER"] = str(local)
    bound = sum(entry.file_bytes for entry in FrameCache(cache).manifest.shards)
    return _weights(FrameCache(cache, bound), BY_SHARDS)


@pytest.mark.slow
def test_two_workers_fetch_each_shard_once_and_end_with_the_weights_of_one(
    hmdb51_root: Path, tmp_path: Path
) -> None:
    """In the order by shards, whose batches do not depend on the number of workers."""
    cache = _cache(tmp_path / "cache", hmdb51_root)
    work = partial(_train_together, cache=cache.path, local=tmp_path / "local")
    first, second = run_together(work, 2, tmp_path)
    expected = _weights(cache, BY_SHARDS)
    for name, weights in expected.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], weights, atol=1e-4), name
    read = [entry.name for entry in cache.manifest.shards if entry.split != "test"]
    (hashed,) = (tmp_path / "local/hashed").iterdir()
    fetched = [Path(json.loads(line)[0]).stem for line in hashed.read_text().splitlines()]
    assert sorted(fetched) == sorted(read)
