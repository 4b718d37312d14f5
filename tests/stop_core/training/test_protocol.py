"""Which clips a protocol trains, validates and tests on."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stop_core.cache import FrameCache, View
from stop_core.datasets import Split
from stop_core.datasets.motion.files import write_motion_dataset
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.training.clip_views import ShownClips
from stop_core.training.protocol import ChosenClips, _require_both, protocol_clips
from tests.caches import write_cache

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class _Labelled(list[int]):
    """The clips of a split, of which only the labels are known."""

    shape = 4, 32, 32, 3

    @property
    def labels(self) -> torch.Tensor:
        return torch.tensor(self)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    folder = tmp_path_factory.mktemp("motion")
    write_motion_dataset(folder / "videos", train=48, test=16, seed=1)
    return FrameCache(write_cache("hmdb51", folder / "videos", folder / "cache", frames=4, size=32))


def _clips(
    cache: FrameCache, seed: int = 0, splits: Sequence[Split] = SPLITS, **values: object
) -> dict[str, list[str]]:
    config = ExperimentConfig(seed=seed, protocol=ProtocolConfig(**values))  # type: ignore[arg-type]
    return {s: some.video_ids for s, some in protocol_clips(cache, config, splits)[0].items()}


def test_the_default_is_every_clip_of_every_split(cache: FrameCache) -> None:
    assert _clips(cache) == {split: cache.split(split).video_ids for split in SPLITS}


@pytest.mark.parametrize("full", [True, False])
def test_few_shot_changes_the_training_split_only(cache: FrameCache, full: bool) -> None:
    found = _clips(cache, shots=2, full_training=full)
    assert found["test"] == cache.split("test").video_ids
    pool = set(cache.split("train").video_ids) | (
        set(cache.split("val").video_ids) if full else set()
    )
    assert len(found["train"]) == 2 * len(cache.manifest.class_names)
    assert set(found["train"]) < pool
    assert found.get("val") == (None if full else cache.split("val").video_ids)
    assert found == _clips(cache, shots=2, full_training=full)
    assert found["train"] != _clips(cache, seed=1, shots=2, full_training=full)["train"]


def test_full_training_shows_every_clip_of_train_and_val_once_an_epoch(cache: FrameCache) -> None:
    config = ExperimentConfig(protocol=ProtocolConfig(full_training=True))
    clips, remarks = protocol_clips(cache, config, SPLITS)
    assert remarks == []
    assert list(clips) == ["train", "test"]
    shown = ShownClips(clips["train"], config, 32, is_trained=True).in_epoch(0)
    parts = [cache.split("train"), cache.split("val")]
    assert shown.video_ids == [video for part in parts for video in part.video_ids]
    assert torch.equal(shown.labels, torch.cat([part.labels for part in parts]))
    assert shown.shards == [shard for part in parts for shard in part.shards]
    assert shown.captions == [captions for part in parts for captions in part.captions]
    every = torch.cat([part.read(range(len(part))) for part in parts])
    assert torch.equal(shown.read(range(len(shown))), every)
    last = len(shown) - 1
    assert torch.equal(shown.read([last, 0]), every[[last, 0]])
    halved = ChosenClips(parts).at([last]).read([0], View(frames=2))
    assert torch.equal(halved, parts[1].read([len(parts[1]) - 1], View(frames=2)))


def test_base_classes_are_trained_and_validated_and_all_are_tested(cache: FrameCache) -> None:
    names = cache.manifest.class_names
    found = _clips(cache, classes="base", base_classes=names[:3])
    for split in ("train", "val"):
        own = cache.split(split)
        base = [v for v, n in zip(own.video_ids, own.labels.tolist(), strict=True) if n < 3]
        assert found.get(split, []) == base
    assert found["test"] == cache.split("test").video_ids


def test_a_class_with_too_few_clips_is_named(cache: FrameCache) -> None:
    config = ExperimentConfig(protocol=ProtocolConfig(shots=99))
    clips, (remark,) = protocol_clips(cache, config, SPLITS)
    assert len(clips["train"]) == len(cache.split("train"))
    count = cache.split("train").labels.tolist().count(0)
    name = cache.manifest.class_names[0]
    assert "shots is 99, and 8 classes have fewer training clips" in remark
    assert f"for example '{name}' with {count}: all are trained on" in remark


def test_a_published_list_is_taken_from_the_training_clips(cache: FrameCache) -> None:
    train, val, test = (cache.split(split).video_ids for split in SPLITS)
    listed = [f"{video.rpartition('/')[2]}.avi" for video in (train[3], train[1], val[0])]
    config = ExperimentConfig(protocol=ProtocolConfig(shots_list=(*listed[:2], "gone.avi")))
    clips, (remark,) = protocol_clips(cache, config, SPLITS)
    assert clips["train"].video_ids == [train[1], train[3]]
    assert "1 clips of shots_list are not in the cache, for example 'gone.avi'" in remark
    with pytest.raises(ValueError, match=r"1 clips of shots_list are in the val.*full_training"):
        _clips(cache, shots_list=tuple(listed))
    whole = _clips(cache, shots_list=tuple(listed), full_training=True)
    assert whole["train"] == [train[1], train[3], val[0]]
    with pytest.raises(ValueError, match=r"1 clips of shots_list are in the test split"):
        _clips(cache, shots_list=(train[0], test[0]), full_training=True)


def test_a_protocol_without_clips_is_refused(cache: FrameCache) -> None:
    with pytest.raises(ValueError, match="leaves no clip to train on"):
        _clips(cache, shots_list=("gone.avi",))
    tested = set(cache.split("test").labels.tolist())
    names = cache.manifest.class_names
    assert tested == set(range(len(names)))
    config = ExperimentConfig(protocol=ProtocolConfig(classes="base"))
    clips = protocol_clips(cache, config, ("train",))[0]
    assert set(clips["train"].labels.tolist()) == set(range(4))
    few = replace(config, protocol=ProtocolConfig(classes="base", base_classes=names[:1]))
    assert set(protocol_clips(cache, few, SPLITS)[0]["train"].labels.tolist()) == {0}


def test_base_classes_without_validation_clips_are_tested_after_the_last_epoch() -> None:
    parts = {"train": [0, 1], "val": [1], "test": [0, 1]}
    splits: Any = {s: _Labelled(labels) for s, labels in parts.items()}
    manifest = SimpleNamespace(
        class_names=["a", "b"], counts={s: len(labels) for s, labels in parts.items()}
    )
    cache: Any = SimpleNamespace(manifest=manifest, split=splits.__getitem__)
    for name, is_validated in (("a", False), ("b", True)):
        protocol = ProtocolConfig(classes="base", base_classes=(name,))
        clips, remarks = protocol_clips(cache, ExperimentConfig(protocol=protocol), SPLITS)
        assert list(clips) == [s for s in SPLITS if s != "val" or is_validated]
        assert ["no validation clip" in one for one in remarks] == [True] * (not is_validated)


def test_base_and_novel_classes_need_test_clips() -> None:
    tested: Any = {"test": SimpleNamespace(labels=torch.tensor([0, 1, 1]))}
    _require_both(tested, [0, 2])
    _require_both({}, [0, 1])
    for base, missing in (([0, 1], "novel"), ([2], "base")):
        with pytest.raises(ValueError, match=f"no clip of the {missing} classes"):
            _require_both(tested, base)


def test_the_first_of_several_absent_videos_is_an_example(cache: FrameCache) -> None:
    train, val = cache.split("train").video_ids, cache.split("val").video_ids
    protocol = ProtocolConfig(shots_list=(train[0], "gone.avi", "lost.avi"))
    _, (remark,) = protocol_clips(cache, ExperimentConfig(protocol=protocol), SPLITS)
    assert remark.startswith("2 clips of shots_list are not in the cache, for example 'gone.avi'")
    with pytest.raises(ValueError, match=rf"2 clips .* for example '{val[0]}'"):
        _clips(cache, shots_list=(train[0], val[0], val[1]))
