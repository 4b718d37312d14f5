"""Selecting from a dataset never moves a clip to another split."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets import DATASETS, SPLITS, select_clips

MakeTree = Callable[[str], Path]


def test_a_selection_keeps_splits_and_renumbers_labels(hmdb51_root: Path) -> None:
    clips = DATASETS["hmdb51"].read(hmdb51_root, 1)
    split_of = {clip.video_id: clip.split for clip in clips}
    chosen = select_clips(clips, ("train", "test"), classes=["wave"])
    assert chosen.class_names == ("wave",)
    assert {clip.label for clip in chosen.clips} == {0}
    assert all(split_of[clip.video_id] == clip.split for clip in chosen.clips)
    assert {clip.split for clip in chosen.clips} == {"train", "test"}


def test_a_limit_holds_for_every_split_and_spreads_over_classes(hmdb51_root: Path) -> None:
    clips = DATASETS["hmdb51"].read(hmdb51_root, 1)
    chosen = select_clips(clips, SPLITS, limit=2).clips
    assert Counter(clip.split for clip in chosen) == {"train": 2, "val": 2, "test": 2}
    assert Counter((clip.split, clip.label) for clip in chosen).most_common(1)[0][1] == 1
    # Class names do not depend on which clips are left.
    assert select_clips(clips, ("val",), limit=1).class_names == ("ride_bike", "wave")


def test_unknown_classes_are_refused_with_the_known_ones(hmdb51_root: Path) -> None:
    clips = DATASETS["hmdb51"].read(hmdb51_root, 1)
    with pytest.raises(ValueError, match="no class dance; there are ride_bike, wave"):
        select_clips(clips, classes=["dance"])


def test_clips_with_captions_have_no_classes_to_choose(make_tree: MakeTree) -> None:
    clips = DATASETS["msrvtt"].read(make_tree("msrvtt"), 1)
    chosen = select_clips(clips, ("train", "test"), limit=3)
    assert chosen.class_names == ()
    assert Counter(clip.split for clip in chosen.clips) == {"train": 3, "test": 3}
    assert set(chosen.clips) <= set(clips)
    with pytest.raises(ValueError, match="--classes: the clips of this dataset have captions"):
        select_clips(clips, classes=["wave"])
