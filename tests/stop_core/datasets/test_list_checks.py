"""Classes with equal texts are refused, and possible mistakes are reported."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stop_core.datasets import (
    DATASETS,
    NO_LABEL,
    Clip,
    Selection,
    refuse_same_words,
    remarks,
    select_clips,
)
from stop_core.datasets.clip import class_words
from stop_core.datasets.list_checks import as_clip_reads, one_sided

ENCODE = open_clip.tokenizer.SimpleTokenizer().encode


def _clip(split: str, class_name: str = "", *captions: str) -> Clip:
    label = 0 if class_name else NO_LABEL
    return Clip(f"{split}{class_name}", "", split, label, class_name, "", captions)  # type: ignore[arg-type]


def _remarks(*clips: Clip, names: tuple[str, ...] = ()) -> list[str]:
    selection = Selection(clips, names, ("train", "val", "test"), (), None)
    return remarks("folder", 1, clips, selection)


@pytest.mark.parametrize(
    "names",
    [
        ("brush_hair", "brush hair"),
        ("BrushHair", "brush_hair"),
        ("brush__hair", "brush_hair"),
        ("[walk]", "walk"),
        ("_walk", "walk"),
        ("walk", "\uff57alk"),
        ("push & pull", "push &amp; pull"),
        ("run 10 km", "run 10km"),
        ("dog\u2019s walk", "dog's walk"),
        # A third name that differs from one of them by case hides neither.
        ("Brush Hair", "brush hair", "brush_hair"),
        ("Brush Hair", "brush_hair"),
    ],
)
def test_two_classes_of_the_same_words_are_refused_by_both_names(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="cannot tell them apart") as caught:
        refuse_same_words(("run", *names))
    assert sum(repr(name) in str(caught.value) for name in names) == 2
    refuse_same_words(("run", names[0]))


@pytest.mark.parametrize("names", [("Walk", "walk"), ("WALK", "walk")])
def test_two_classes_that_differ_by_case_are_remarked(names: tuple[str, str]) -> None:
    refuse_same_words(names)
    clips = [_clip(split, name) for split in ("train", "val", "test") for name in names]
    (found,) = _remarks(*clips, names=names)
    assert found.startswith(f"the classes {names[0]!r} and {names[1]!r} differ only by case")


@given(
    st.lists(st.text("aA1 2'-.&;st\u2019\uff57\ufb01\u8dd1", min_size=1), min_size=2, max_size=2)
)
@example(["walk 2", "Walk2"])
@example(["push &amp; pull", "push & pull"])
def test_names_are_read_alike_if_the_tokenizer_reads_their_words_alike(names: list[str]) -> None:
    tokens = [ENCODE(class_words(name)) for name in names]
    read = [as_clip_reads(name) for name in names]
    assert (read[0] == read[1]) == (tokens[0] == tokens[1])


@pytest.mark.parametrize("name", ["_", "[]", "__ _"])
def test_a_class_without_words_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="has no word that CLIP can read"):
        refuse_same_words(("run", name))


def test_a_class_in_one_split_alone_and_an_empty_split_are_remarked() -> None:
    clips = [_clip("train", "run"), _clip("train", "walk"), _clip("test", "walk")]
    assert _remarks(*clips, _clip("test", "swim"), names=("run", "swim", "walk")) == [
        "the split val has no clips",
        "1 of 2 classes have clips in test and none in train: swim",
        "1 of 2 classes have clips in train and none in test: run",
    ]
    many = {"train": [f"c{i}" for i in range(9)], "test": ["c8"]}
    assert one_sided(many)[0].endswith("none in test: c0, c1, c2, c3, c4 and 3 more")


def test_two_files_that_may_be_one_video_are_remarked() -> None:
    files = ["a/b.mov", "a/b.mp4", "a/c.mp4"]
    clips = [Clip(file, file, "test", 0, "a", file) for file in files]
    selection = Selection(clips, ("a",), ("test",), (), None)
    assert remarks("folder", 1, clips, selection) == [
        "files that differ only by extension: 1, such as a/b.mp4 of a/b.mov; each counts as a clip"
    ]


def test_a_split_without_clips_makes_no_remark_on_every_class() -> None:
    assert one_sided({"train": ["a", "b"], "val": ["a"], "test": []}) == []


def test_a_caption_of_two_test_clips_is_remarked() -> None:
    clips = [_clip(split, "", "A man runs.") for split in ("train", "val", "test")]
    other = Clip("other", "", "test", NO_LABEL, "", "", ("a man runs.",))
    assert _remarks(*clips) == []
    (found,) = _remarks(*clips, other)
    assert "captions of several test clips: 1, for example 'a man runs.'" in found


def test_a_list_that_is_not_the_published_one_is_remarked(hmdb51_root: Path) -> None:
    clips = DATASETS["hmdb51"].read(hmdb51_root, 1)
    found = remarks("hmdb51", 1, clips, select_clips(clips))[0]
    assert "12 train + val, published 3,570; 4 test, published 1,530" in found
    assert "2 classes, published 51" in found


@pytest.mark.parametrize("name", ["hmdb51", "ucf101"])
def test_the_official_lists_are_the_published_ones(
    real_annotations: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    videos, lists = {
        "hmdb51": ("hmdb51_org", "testTrainMulti_7030_splits"),
        "ucf101": ("UCF-101", "ucfTrainTestlist"),
    }[name]
    (tmp_path / videos).mkdir()
    (tmp_path / lists).symlink_to(real_annotations(name))
    for fold in (1, 2, 3):
        clips = DATASETS[name].read(tmp_path, fold)
        selection = select_clips(clips)
        refuse_same_words(selection.class_names)
        assert remarks(name, fold, clips, selection) == []
