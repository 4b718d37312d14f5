"""An experiment that does not fit its cache is refused with a remedy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.training.check_fit import check_fit, remarks_on
from stop_core.cache import CacheConfig, Manifest
from stop_core.datasets import Selection
from stop_core.datasets.registry import DATASETS
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.stop import StopConfig
from stop_core.settings.training import TrainingOptions
from tests.caches import write_cache

VIEW = ExperimentConfig(random_crop=True)
FEW = ExperimentConfig(frames=3, segment_jitter=True)


def _manifest(
    size: int = 32,
    frames: int = 6,
    crop: str = "center",
    names: tuple[str, ...] = ("wave", "walk"),
    **counts: int,
) -> Manifest:
    selection = Selection((), names, ("train", "val", "test"), (), None)
    dataset = DATASETS["hmdb51"]
    config = CacheConfig.of(dataset, selection, fold=1, frames=frames, size=size)
    config = replace(config, crop=crop)
    found = {"train": 8, "val": 2, "test": 4, **counts}
    return Manifest(2, config, "d" * 64, found, 0, "f" * 64, ())


def _captioned() -> Manifest:
    manifest = _manifest(names=())
    config = replace(manifest.config, dataset="csv-captions", task="retrieval")
    return replace(manifest, config=config)


def _with(**options: Any) -> ExperimentConfig:
    return ExperimentConfig(training=TrainingOptions(**options))


def _under(**options: Any) -> ExperimentConfig:
    return ExperimentConfig(protocol=ProtocolConfig(**options))


FLIP = _with(flip=True)


@pytest.mark.parametrize(
    ("experiment", "manifest", "message"),
    [
        (ExperimentConfig(), _manifest(size=16), "--size 32 into another --cache"),
        (ExperimentConfig(), _manifest(size=40), "or give --random-crop"),
        (VIEW, _manifest(), "random_crop has nothing to choose from.*--crop none"),
        (VIEW, _manifest(size=16), "frames of 16 pixels.*--size 32"),
        (replace(FEW, frames=6), _manifest(), "segment_jitter has nothing to choose from"),
        (replace(FEW, frames=7), _manifest(), "7 frames per clip are needed and 6 are cached"),
        (ExperimentConfig(), _manifest(val=0), "no clips in its val split"),
        (ExperimentConfig(stop=StopConfig(n_s=17)), _manifest(), "only 16 patches"),
        (ExperimentConfig(), _manifest(names=("Walk", "walk")), "'Walk' and 'walk' become the"),
        (ExperimentConfig(), _manifest(names=("walk", "walk ")), "'walk' and 'walk ' become the"),
        (
            FLIP,
            _manifest(names=("walk", "turn_left")),
            "1 of 2 classes .*, for example 'turn left'",
        ),
        (_with(captions="every"), _manifest(), "captions is every, but hmdb51 .* with classes"),
        (_with(mixup=0.2), _captioned(), "mixup is 0.2, but csv-captions .* with captions"),
        (_with(label_smoothing=0.2), _captioned(), "label_smoothing is 0.2, but csv-captions"),
        (_under(shots=4), _captioned(), "shots chooses clips by their classes.*leave shots out"),
        (_under(shots_list=("a",)), _captioned(), "shots_list chooses clips by their classes"),
        (_under(classes="base"), _captioned(), "classes chooses clips by their classes"),
        (_under(classes="base"), _manifest(names=("walk",)), "1 of 1 classes would be base"),
        (_under(classes="base", base_classes=("run",)), _manifest(), "'run', which is no class"),
        (_under(full_training=True), _manifest(), "the trials of a sweep are compared"),
    ],
)
def test_an_unsuitable_cache_is_refused(
    experiment: ExperimentConfig, manifest: Manifest, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
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
        (ExperimentConfig(method="linear-probe"), _manifest(names=("Walk", "walk"))),
        (_with(flip=True, mixup=0.2, label_smoothing=0.1), _manifest()),
        (_with(flip=True, captions="every", randaugment=2), _captioned()),
    ],
)
def test_a_suitable_cache_is_accepted(experiment: ExperimentConfig, manifest: Manifest) -> None:
    check_fit(experiment, manifest, ("train", "val", "test"))


def test_classes_in_only_one_split_and_a_missing_validation_split_are_remarked_on(
    hmdb51_root: Path,
) -> None:
    videos = [str(path.relative_to(hmdb51_root)) for path in sorted(hmdb51_root.glob("*/*/*.avi"))]
    rows = [("train", "run"), ("train", "walk"), ("test", "walk"), ("test", "swim")]
    lines = [f"{video},{','.join(row)}" for video, row in zip(videos, rows, strict=False)]
    (hmdb51_root / "clips.csv").write_text("\n".join(["path,split,label", *lines]))
    cache = write_cache("csv", hmdb51_root, hmdb51_root / "cache", frames=2, size=32)
    assert remarks_on(ExperimentConfig(), cache) == [
        "there are no validation clips: the last epoch is tested, and not the best",
        "1 of 2 classes have clips in test and none in train: swim",
        "1 of 2 classes have clips in train and none in test: run",
    ]
    assert remarks_on(ExperimentConfig(method="zero-shot"), cache) == []


def test_clips_that_are_never_mirrored_are_counted(hmdb51_root: Path) -> None:
    videos = [str(path.relative_to(hmdb51_root)) for path in sorted(hmdb51_root.glob("*/*/*.avi"))]
    words = [
        ("train", "a red shape"),
        ("train", "it moves left"),
        ("train", "up"),
        ("val", "to the right"),
    ]
    lines = [f"{video},{','.join(row)}" for video, row in zip(videos, words, strict=False)]
    (hmdb51_root / "clips.csv").write_text("\n".join(["path,split,caption", *lines]))
    cache = write_cache("csv-captions", hmdb51_root, hmdb51_root / "cache", frames=2, size=32)
    (remark,) = remarks_on(FLIP, cache)
    assert remark.startswith("flip leaves 1 of 3 training clips as they are")
    assert remarks_on(ExperimentConfig(), cache) == []
    (remark,) = remarks_on(ExperimentConfig(), cache, local_bytes=1000)
    assert "fetched many times in an epoch; with --shuffle shards, once" in remark
    assert remarks_on(ExperimentConfig(), cache, local_bytes=1 << 30) == []
    assert remarks_on(_with(shuffle="shards"), cache, local_bytes=1000) == []


def test_full_training_needs_validation_clips_to_add() -> None:
    check_fit(_under(full_training=True), _manifest(), ("train", "test"))
    with pytest.raises(ValueError, match=r"adds the validation clips .* the cache has none"):
        check_fit(_under(full_training=True), _manifest(val=0), ("train", "test"))
