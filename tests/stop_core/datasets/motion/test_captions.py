"""The motion set with captions: its sentences describe its videos."""

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from stop_core.datasets import select_clips
from stop_core.datasets.motion.captions import (
    STORIES,
    captions_of,
    read_captioned_motion,
    write_captioned_motion,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "set"
    write_captioned_motion(folder, train=40, seed=3)
    return folder


def test_validation_and_test_tell_every_story_once(root: Path) -> None:
    clips = read_captioned_motion(root)
    assert Counter(clip.split for clip in clips) == {"train": 40, "val": 96, "test": 96}
    told = {captions_of(story) for story in STORIES}
    assert len({sentence for pair in told for sentence in pair}) == 2 * len(STORIES) == 192
    for split in ("val", "test"):
        captions = [clip.captions for clip in clips if clip.split == split]
        assert set(captions) == told
        assert len(captions) == len(told)


def test_clips_of_retrieval_have_captions_and_no_class(root: Path) -> None:
    selection = select_clips(read_captioned_motion(root), limit=5)
    assert selection.class_names == ()
    assert Counter(clip.split for clip in selection.clips) == {"train": 5, "val": 5, "test": 5}
    for clip in selection.clips:
        assert (clip.label, clip.class_name) == (-1, "")
        assert len(clip.captions) == 2
        assert (root / clip.path).is_file()


def test_the_mover_is_of_the_colour_that_its_caption_names(root: Path) -> None:
    # Blue and green distinguish purple from cyan: only the mover changes in time.
    clips = [c for c in read_captioned_motion(root) if c.split == "test"]
    excess = {"purple": [], "cyan": []}
    for clip in clips:
        colour = clip.captions[0].split()[-4]
        if colour in excess:
            with av.open(str(root / clip.path)) as video:
                frames = np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])
            moved = np.ptp(frames.astype(int), axis=0).sum(-1) > 150
            peak = frames[:, moved].astype(int)
            excess[colour].append((peak[..., 0] - peak[..., 1]).max(0).mean())
    assert np.mean(excess["purple"]) > np.mean(excess["cyan"]) + 50


def test_the_same_arguments_are_left_alone_and_others_refused(root: Path) -> None:
    before = (root / "captions.csv").stat().st_mtime_ns
    write_captioned_motion(root, train=40, seed=3)
    assert (root / "captions.csv").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="give another folder"):
        write_captioned_motion(root, train=41, seed=3)
