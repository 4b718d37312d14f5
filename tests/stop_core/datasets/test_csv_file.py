"""One's own table: labels, captions, splits and sources of it, or file and line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.csv_file import read_csv

MakeTree = Callable[[str], Path]


def test_rows_of_one_path_add_captions(make_tree: MakeTree) -> None:
    root = make_tree("csv")
    clips = read_csv(root, "recognition")
    assert len(clips) == 12
    assert (clips[3].class_name, clips[3].label, clips[3].source) == ("wave", 1, "film1")
    captioned = read_csv(root, "retrieval")
    assert [clip.captions for clip in captioned] == [clip.captions for clip in clips]
    assert captioned[3].captions == ("one, 3", "two 3")
    assert [clip.split for clip in captioned if clip.split == "test"] == ["test", "test"]


def test_labels_alone_are_enough_and_val_is_not_carved_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(
        "label,split,path\nb,train,x.mp4\na,train,y.mp4\na,train,z.mp4\na,val,v.mp4\n"
    )
    clips = read_csv(tmp_path, "recognition")
    assert [(c.video_id, c.label, c.split) for c in clips] == [
        ("x.mp4", 1, "train"),
        ("y.mp4", 0, "train"),
        ("z.mp4", 0, "train"),
        ("v.mp4", 0, "val"),
    ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("/etc/a.mp4,train,a", "expected a path below the data root"),
        ("b/../../a.mp4,train,a", "expected a path below the data root"),
        (",train,a", "expected a path below the data root"),
        ("b.mp4,training,a", "split is 'training', expected one of train, val, test"),
        ("b.mp4,train,", r"b\.mp4 has no label"),
        ("a.mp4,train,a", r"a\.mp4 is listed twice, first in .*line 2"),
        ("a.mp4,test,a", r"a\.mp4 is listed twice, first in .*line 2, with the split"),
        ("a.webm,train,b", r"a\.webm is listed twice, first in .*line 2 as a\.mp4, with the class"),
        ("b.mp4,train,\u200b\u00a0", r"b\.mp4 has no label"),
        ("b.mp4,train", r"expected 3 fields \(path, split, label\)"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: str, told: str) -> None:
    (tmp_path / "clips.csv").write_text(f"path,split,label\na.mp4,train,a\n{row}\n")
    with pytest.raises(ValueError, match=rf"clips\.csv, line 3: {told}"):
        read_csv(tmp_path, "recognition")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("path,split,label\na.mp4,train,a\n")
    with pytest.raises(ValueError, match=r"clips\.csv, line 1: expected the column caption, found"):
        read_csv(tmp_path, "retrieval")


def test_sources_that_look_alike_are_one(tmp_path: Path) -> None:
    rows = [f"{i}.mp4,train,a,film{i // 2}{' ' * (i % 2)}" for i in range(8)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,split,label,source", *rows]))
    clips = read_csv(tmp_path, "recognition")
    assert {clip.source for clip in clips} == {f"film{i}" for i in range(4)}
    held = {clip.source for clip in clips if clip.split == "val"}
    assert held
    assert not held & {clip.source for clip in clips if clip.split == "train"}
