"""UCF101's lists: the official counts, and groups that stay together."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.ucf101 import UCF101_SPLITS, UCF101_VIDEOS, read_ucf101, video_group

MakeTree = Callable[[str], Path]


@pytest.mark.parametrize(
    ("fold", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)]
)
def test_official_counts_and_a_carve_by_group(
    real_annotations: Callable[[str], Path], tmp_path: Path, fold: int, train: int, test: int
) -> None:
    (tmp_path / UCF101_VIDEOS).mkdir()
    (tmp_path / UCF101_SPLITS).symlink_to(real_annotations("ucf101"))
    clips = read_ucf101(tmp_path, fold)
    counts = Counter(clip.split for clip in clips)
    assert (counts["train"] + counts["val"], counts["test"]) == (train, test)
    names = {clip.label: clip.class_name for clip in clips}
    assert len(names) == 101
    assert (names[0], names[100]) == ("ApplyEyeMakeup", "YoYo")
    sources = {s: {c.source for c in clips if c.split == s} for s in ("train", "val", "test")}
    assert not sources["train"] & sources["val"]
    assert not sources["train"] & sources["test"]
    per_class = Counter(clip.label for clip in clips if clip.split == "val")
    assert len(per_class) == 101
    assert 0.07 < counts["val"] / train < 0.12


def test_labels_sources_and_paths(make_tree: MakeTree) -> None:
    clips = {clip.video_id: clip for clip in read_ucf101(make_tree("ucf101"), 1)}
    clip = clips["YoYo/v_YoYo_g01_c02"]
    assert (clip.label, clip.split, clip.source) == (1, "test", "YoYo/g01")
    assert clip.path == "UCF-101/YoYo/v_YoYo_g01_c02.avi"
    # The name in the file may be written otherwise than the folder's.
    assert video_group("v_HandStandPushups_g07_c01", "HandstandPushups") == "HandstandPushups/g07"


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("trainlist01", "Juggling/v_Juggling_g01_c01.avi 3", "line 9: expected '<class>/<file>'"),
        ("trainlist01", "YoYo/v_YoYo_g09_c01.avi 1", "line 9: YoYo has number 1, .* 2"),
        ("trainlist01", "YoYo/../v_YoYo_g09_c01.avi 2", "line 9: expected the name of a video"),
        (
            "testlist01",
            "YoYo/v_YoYo_g02_c01.avi",
            "line 5: YoYo/v_YoYo_g02_c01.avi is listed twice, first in .*trainlist01",
        ),
        ("classInd", "4 Juggling", "line 3: expected '3 <class>'"),
    ],
)
def test_a_broken_line_is_named(make_tree: MakeTree, file: str, line: str, told: str) -> None:
    root = make_tree("ucf101")
    with (root / UCF101_SPLITS / f"{file}.txt").open("a") as list_file:
        list_file.write(line)
    with pytest.raises(ValueError, match=rf"{file}\.txt, {told}"):
        read_ucf101(root, 1)
