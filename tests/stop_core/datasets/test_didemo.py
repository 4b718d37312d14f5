"""DiDeMo: the descriptions of a video form one paragraph, wherever they are in the file."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets import missing_clips
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


NAMES = (
    "1@N0_2_a.mov",
    "1@N0_2_a.mp4",
    "1@N0_3_b.mts",
    "1@N0_4_c.3g2",
    "1@N0_5_d.m2ts",
    "1@N0_6_e.",
)


@pytest.mark.parametrize(
    "files",
    [
        [f"raw/deep/{name}" for name in NAMES],
        [f"videos/{name}" for name in NAMES],
        [f"videos/{name}.mp4" for name in NAMES],  # as the official script saves them
        [f"x/{name.rpartition('.')[0]}.mp4" for name in NAMES[1:]],
        [f"x/{name.rpartition('.')[0]}.MKV" for name in NAMES[1:]],
        [f"x/{name.replace('@', '%40')}" for name in NAMES[1:]],
    ],
)
def test_raw_and_converted_files_are_found_wherever_they_lie(
    make_tree: MakeTree, files: list[str]
) -> None:
    root = make_tree("didemo")
    entries = [{"video": name, "description": f"of {name}"} for name in NAMES]
    (root / "test_data.json").write_text(json.dumps(entries))
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    clips = [clip for clip in read_didemo(root) if clip.split == "test"]
    assert [clip.video_id for clip in clips] == [NAMES[0], *NAMES[2:]]
    assert missing_clips(root, clips) == []
    assert len({clip.path for clip in clips}) == len(clips)
    assert clips[0].captions == ("of 1@N0_2_a.mov of 1@N0_2_a.mp4",)
