"""Training uses another part of a clip in every epoch; evaluation always uses the same."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from stop_core.cache import CacheConfig, CachedClips, CacheJob, FrameCache, View, write_shard
from stop_core.datasets import DATASETS, select_clips
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training.augmentation import mix, mixing
from stop_core.training.clip_views import ShownClips
from tests.stop_core.memory_clips import MemoryClips

SIZE = 12
OPTIONS = [
    TrainingOptions(flip=True),
    TrainingOptions(randaugment=2),
    TrainingOptions(mixup=0.5),
    TrainingOptions(captions="every", flip=True, randaugment=1),
]
RANDOM = ExperimentConfig(frames=3, segment_jitter=True, random_crop=True, seed=4)


@pytest.fixture
def cached(hmdb51_root: Path, tmp_path: Path) -> CachedClips:
    """The training clips of a cache of 6 frames of 16 pixels."""
    dataset = DATASETS["hmdb51"]
    selection = select_clips(dataset.read(hmdb51_root, 1))
    config = CacheConfig.of(dataset, selection, fold=1, frames=6, size=16)
    job = CacheJob.open(tmp_path / "cache", config, selection.clips)
    for plan in job.plans:
        write_shard(plan, config, hmdb51_root, job.cache)
    job.finish()
    return FrameCache(job.cache).split("train")


def test_evaluation_uses_the_centre_of_the_middle_frames_with_any_training_view(
    cached: CachedClips,
) -> None:
    shown = ShownClips(cached, RANDOM, SIZE)
    expected = cached.read([1, 0], View(frames=3, size=SIZE))
    assert torch.equal(shown.read([1, 0]), expected)
    shown.in_epoch(3).read([0])
    assert torch.equal(shown.read([1, 0]), expected)
    assert shown.shape == tuple(expected.shape[1:])
    assert shown.video_ids == cached.video_ids


def test_training_uses_another_part_in_every_epoch_and_the_same_in_every_batch(
    cached: CachedClips,
) -> None:
    shown = ShownClips(cached, RANDOM, SIZE)
    first, second = (shown.in_epoch(epoch).read([0, 1, 2]) for epoch in (0, 1))
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for clip in (2, 0):
        alone = ShownClips(cached, RANDOM, SIZE).in_epoch(1).read([clip])
        assert torch.equal(alone[0], second[clip])


def test_without_augmentation_training_and_evaluation_use_the_same_frames(
    cached: CachedClips,
) -> None:
    shown = ShownClips(cached, ExperimentConfig(frames=4), 16)
    assert torch.equal(shown.in_epoch(5).read([0, 1]), shown.read([0, 1]))


def test_more_frames_or_pixels_than_are_cached_are_refused(cached: CachedClips) -> None:
    with pytest.raises(ValueError, match=r"7 frames per clip are needed.*--frames 7"):
        ShownClips(cached, ExperimentConfig(frames=7), SIZE)


def _shown(options: TrainingOptions, clips: MemoryClips, *, is_trained: bool = True) -> ShownClips:
    config = replace(RANDOM, frames=2, training=options)
    return ShownClips(clips, config, 24, is_trained=is_trained)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_augmented_clip_depends_on_seed_epoch_and_example_and_never_on_the_batch(
    options: TrainingOptions,
) -> None:
    clips = MemoryClips()
    shown = _shown(options, clips)
    everything = range(len(shown))
    first, second = (shown.in_epoch(epoch).read(everything) for epoch in (0, 1))
    assert first.shape == (len(shown), *shown.shape)
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    again = _shown(options, clips).in_epoch(1)
    for batch in ([7], [2, 9, 0], list(reversed(everything))):
        assert torch.equal(again.read(batch), second[batch])
    evaluated = _shown(options, clips, is_trained=False)
    assert torch.equal(evaluated.read([3]), clips.read([3], View(frames=2, size=24)))


def test_each_caption_of_a_clip_is_shown_with_a_view_of_its_own_that_no_epoch_repeats() -> None:
    clips = MemoryClips()
    shown = _shown(TrainingOptions(captions="every"), clips)
    assert len(shown) == len(shown.captions) == sum(map(len, clips.captions))
    own = [n for n, video in enumerate(shown.video_ids) if video == "clip 2"]
    assert [shown.captions[n] for n in own] == [(sentence,) for sentence in clips.captions[2]]
    assert shown.labels[own].tolist() == [2, 2, 2]
    views = [shown.in_epoch(epoch).read([n]) for epoch in range(4) for n in own]
    assert len({view.numpy().tobytes() for view in views}) == 12
    # Without captions to show, the views of an epoch are those of its number.
    plain = _shown(TrainingOptions(flip=True), clips).in_epoch(5)
    with patch.object(clips, "read", wraps=clips.read) as read:
        plain.read([2])
    assert [call.args[1].epoch for call in read.call_args_list] == [5]
    # Evaluation asks for clips.
    evaluated = _shown(TrainingOptions(captions="every"), clips, is_trained=False)
    assert evaluated._pairs == [(number, 0) for number in range(len(clips))]


def test_a_clip_with_a_caption_that_names_a_side_is_never_mirrored() -> None:
    clips = MemoryClips()
    clips.captions[4] = ("a red shape", "it moves to the left")
    config = ExperimentConfig(training=TrainingOptions(flip=True))
    shown = ShownClips(clips, config, 32, is_trained=True)  # type: ignore[arg-type]
    flipped = {
        clip
        for epoch in range(12)
        for clip, frames in enumerate(shown.in_epoch(epoch).read(range(10)))
        if torch.equal(frames, clips.frames[clip].flip(2))
    }
    assert flipped == set(range(10)) - {4}


def test_mixup_mixes_the_views_that_the_two_clips_have_in_that_epoch() -> None:
    options = TrainingOptions(randaugment=1, mixup=0.5)
    shown = _shown(options, MemoryClips()).in_epoch(3)
    plain = _shown(replace(options, mixup=0.0), MemoryClips()).in_epoch(3)
    for clip in range(10):
        partner, weight = mixing(clip, 10, shown._config, 3)
        own, other = plain.read([clip, partner])
        assert torch.equal(shown.read([clip])[0], mix(own, other, weight))
