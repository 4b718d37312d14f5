"""Kinetics: rows become names of files, and YouTube videos stay together."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.kinetics import read_kinetics

MakeTree = Callable[[str], Path]


def test_the_official_splits(make_tree: MakeTree) -> None:
    clips = {clip.video_id: clip for clip in read_kinetics(make_tree("kinetics"))}
    assert Counter(clip.split for clip in clips.values()) == {"train": 8, "val": 2, "test": 2}
    clip = clips["-id03_xxxxx_000003_000013"]
    assert (clip.class_name, clip.label, clip.source) == ("yoga", 1, "-id03_xxxxx")
    assert clip.path == "train/yoga/-id03_xxxxx_000003_000013.mp4"


def test_the_val_protocol_tests_on_validation_and_needs_no_test_list(make_tree: MakeTree) -> None:
    root = make_tree("kinetics")
    (root / "annotations/test.csv").unlink()
    (root / "annotations/val.csv").rename(root / "annotations/kinetics_validate.csv")
    clips = read_kinetics(root, val_as_test=True)
    assert Counter(clip.split for clip in clips) == {"train": 6, "val": 2, "test": 2}


def test_folders_without_classes_or_with_other_names_serve_too(make_tree: MakeTree) -> None:
    root = make_tree("kinetics")
    for path in [*root.glob("*/air drumming/*.mp4")]:
        target = root / f"videos_{path.parts[-3]}" / "air_drumming" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for path in [*root.glob("*/yoga/*.mp4")]:
        path.rename(path.parents[1] / path.name)
    assert all((root / clip.path).is_file() for clip in read_kinetics(root))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("yoga,../a,1,11,train,0", "expected the name of a video, found '../a'"),
        ("yoga,abc,1,x,train,0", "expected seconds, found '1' and 'x'"),
        (",abc,1,11,train,0", "abc has no label$"),
        ("yoga,abc,1", "expected 6 fields"),
        ('yoga,"abc,1,11,train,0', "not CSV"),
        ("yoga,-id01_xxxxx,1,11,train,0", "-id01_xxxxx_000001_000011 is listed twice"),
    ],
)
def test_a_broken_row_is_named(make_tree: MakeTree, row: str, told: str) -> None:
    root = make_tree("kinetics")
    with (root / "annotations/train.csv").open("a") as file:
        file.write(row)
    with pytest.raises(ValueError, match=rf"train\.csv, line 10: {told}"):
        read_kinetics(root)


def test_a_list_without_labels_is_told_with_the_protocol_that_needs_none(
    make_tree: MakeTree,
) -> None:
    root = make_tree("kinetics")
    row = "youtube_id,time_start,time_end,split\na,1,2,test\n"
    (root / "annotations/test.csv").write_text(row)
    with pytest.raises(
        ValueError, match=r"test\.csv, line 2: a has no label; --dataset kinetics-v"
    ):
        read_kinetics(root)
    (root / "annotations/train.csv").write_text(row)
    with pytest.raises(ValueError, match=r"train\.csv, line 1: expected the column label, found"):
        read_kinetics(root)
