"""VATEX: ten English sentences per clip, and two test protocols."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.vatex import read_vatex, read_vatex_1k5

MakeTree = Callable[[str], Path]


def test_the_official_splits(make_tree: MakeTree) -> None:
    clips = read_vatex(make_tree("vatex"))
    assert Counter(clip.split for clip in clips) == {"train": 6, "val": 6, "test": 6}
    assert {clip.captions for clip in clips} == {("english 0", "english 1", "english 2")}
    assert clips[0].source == "-id00__wxyz"


def test_1k5_tests_the_listed_part_of_validation(make_tree: MakeTree) -> None:
    root = make_tree("vatex")
    official = {clip.video_id: clip.split for clip in read_vatex(root)}
    clips = read_vatex_1k5(root)
    assert Counter(clip.split for clip in clips) == {"train": 6, "val": 3, "test": 3}
    assert all(official[clip.video_id] == "val" for clip in clips if clip.split != "train")
    with (root / "test_list.txt").open("a") as file:
        file.write("-id00__wxyz_000001_000011\n")
    with pytest.raises(ValueError, match=r"test_list\.txt, line 4: -id00.* is not a video of"):
        read_vatex_1k5(root)
