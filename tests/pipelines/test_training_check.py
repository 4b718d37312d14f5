"""What does not suit its cache is refused in one sentence that says what to do."""

from dataclasses import replace

import pytest

from pipelines.training_check import check_fit
from stop_core.cache import CacheConfig, Manifest
from stop_core.config import StopConfig
from stop_core.datasets import Selection
from stop_core.datasets.registry import DATASETS
from stop_core.experiment import ExperimentConfig

VIEW = ExperimentConfig(random_crop=True)
FEW = ExperimentConfig(frames=3, segment_jitter=True)


def _manifest(size: int = 32, frames: int = 6, crop: str = "center", **counts: int) -> Manifest:
    selection = Selection((), ("wave", "walk"), ("train", "val", "test"), (), None)
    dataset = DATASETS["hmdb51"]
    config = CacheConfig.of(dataset, selection, fold=1, frames=frames, size=size)
    config = replace(config, crop=crop)
    found = {"train": 8, "val": 2, "test": 4, **counts}
    return Manifest(2, config, "d" * 64, found, 0, "f" * 64, ())


@pytest.mark.parametrize(
    ("experiment", "manifest", "told"),
    [
        (ExperimentConfig(), _manifest(size=16), "--size 32 into another --cache"),
        (ExperimentConfig(), _manifest(size=40), "or give --random-crop"),
        (VIEW, _manifest(), "random_crop has nothing to choose from.*--crop none"),
        (VIEW, _manifest(size=16), "frames of 16 pixels.*--size 32"),
        (replace(FEW, frames=6), _manifest(), "segment_jitter has nothing to choose from"),
        (replace(FEW, frames=7), _manifest(), "7 frames of a clip are wanted and 6 are cached"),
        (ExperimentConfig(), _manifest(val=0), "no clips in its val split"),
        (ExperimentConfig(stop=StopConfig(n_s=17)), _manifest(), "only 16 patches"),
    ],
)
def test_a_cache_that_does_not_suit_is_refused(
    experiment: ExperimentConfig, manifest: Manifest, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        check_fit(experiment, manifest, ("train", "val", "test"))


@pytest.mark.parametrize(
    ("experiment", "manifest"),
    [
        (ExperimentConfig(), _manifest()),
        (ExperimentConfig(), _manifest(crop="none")),
        (VIEW, _manifest(size=40)),
        (VIEW, _manifest(crop="none")),
        (FEW, _manifest()),
        (ExperimentConfig(frames=2), _manifest()),
    ],
)
def test_a_cache_that_suits_is_taken(experiment: ExperimentConfig, manifest: Manifest) -> None:
    check_fit(experiment, manifest, ("train", "val", "test"))
