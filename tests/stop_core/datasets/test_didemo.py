"""DiDeMo: the descriptions of a video are one paragraph, wherever they stand in the file."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.didemo import read_didemo

MakeTree = Callable[[str], Path]


def test_descriptions_are_joined_and_files_found_as_the_official_script_saves_them(
    make_tree: MakeTree,
) -> None:
    root = make_tree("didemo")
    video = "10@N00_2410_274c77d26a"
    (root / f"videos/{video}.mov.mp4").rename(root / f"videos/{video}.mov")
    clips = {clip.video_id: clip for clip in read_didemo(root)}
    assert Counter(clip.split for clip in clips.values()) == {"train": 3, "val": 3, "test": 3}
    assert {clip.captions for clip in clips.values()} == {("moment 0 moment 1",)}
    assert clips[f"{video}.mov"].path == f"videos/{video}.mov"
    assert clips["11@N00_2411_274c77d26a.mov"].path == "videos/11@N00_2411_274c77d26a.mov.mp4"


def test_a_video_in_two_splits_is_refused(make_tree: MakeTree) -> None:
    root = make_tree("didemo")
    (root / "test_data.json").write_bytes((root / "val_data.json").read_bytes())
    with pytest.raises(
        ValueError, match=r"test_data\.json, entry 1: .* twice, first in .*val_data"
    ):
        read_didemo(root)
