"""One's own folders: classes by name, with splits or without."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.folder import read_folder

MakeTree = Callable[[str], Path]


def test_with_folders_for_the_splits(make_tree: MakeTree) -> None:
    root = make_tree("folder")
    clips = read_folder(root)
    assert Counter((c.split, c.class_name, c.label) for c in clips) == {
        ("train", "dive", 0): 3,
        ("val", "dive", 0): 1,
        ("train", "wave", 1): 3,
        ("val", "wave", 1): 1,
        ("test", "dive", 0): 4,
        ("test", "wave", 1): 4,
    }
    # With a val of one's own, nothing is carved.
    shutil.copytree(root / "test", root / "val")
    assert Counter(c.split for c in read_folder(root)) == {"train": 8, "val": 8, "test": 8}


def test_without_folders_for_the_splits(make_tree: MakeTree) -> None:
    root = make_tree("folder")
    shutil.rmtree(root / "test")
    clips = read_folder(root / "train")
    assert Counter(c.split for c in clips) == {"train": 6, "val": 2}
    assert clips[0].path == "dive/clip0.mp4"


def test_what_does_not_fit_is_named(make_tree: MakeTree) -> None:
    root = make_tree("folder")
    (root / "train/stray.mp4").touch()
    with pytest.raises(ValueError, match=r"train/stray\.mp4 is in no folder of a class"):
        read_folder(root)
    (root / "train/stray.mp4").unlink()
    (root / "test").rename(root / "validation")
    with pytest.raises(ValueError, match="validation should be one of train, val, test"):
        read_folder(root)


def test_no_video_is_lost_by_names_that_look_alike(tmp_path: Path) -> None:
    for folder in ("caf\u00e9", "cafe\u0301", "cafe\u0301 "):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for name in ("a.mp4", *(f"b{i}.{ending}" for i in range(20) for ending in ("mov", "mp4"))):
            (tmp_path / "train" / folder / name).touch()
    clips = read_folder(tmp_path)
    assert {clip.class_name for clip in clips} == {"caf\u00e9"}
    assert len(clips) == len({clip.path for clip in clips}) == 3 * 41
    # b.mov may be b.mp4, left over from a conversion, which is not trained and tested on.
    splits = {(clip.source, clip.split) for clip in clips}
    assert len(splits) == 3 * 21
    assert {split for _, split in splits} == {"train", "val"}
