"""One clip for each video, whichever name a list gives it, and both places of a conflict."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.datasets import DATASETS, NO_LABEL, Clip
from stop_core.datasets.data_root import Listing, number_classes
from stop_core.datasets.video_files import EXTENSIONS, video_key

MakeTree = Callable[[str], Path]
FIRST = Clip("v/a.mov", "v/a.mov", "train", NO_LABEL, "wave", "v/a.mov", ("one",))


def _listed(*clips: Clip, again: bool = False) -> list[Clip]:
    listing = Listing()
    for number, clip in enumerate(clips, 1):
        listing.add(clip, f"list, line {number}", again=again)
    return listing.finish()


@given(
    st.text("ab.é_1-", min_size=1).filter(lambda stem: video_key(stem) == stem),
    st.lists(st.sampled_from([*EXTENSIONS, ".", ".MOV", ".Mp4"]), max_size=2).map("".join),
)
def test_an_ending_is_no_part_of_the_name(stem: str, ending: str) -> None:
    assert video_key(stem + ending) == stem


@pytest.mark.parametrize(
    ("name", "other", "are_one"),
    [
        ("a@b.mov", "a%40b.mp4", True),
        ("caf\u00e9.mp4", "cafe\u0301.webm", True),
        ("a.mov.mp4", "a.", True),
        ("A.mp4", "a.mp4", False),  # YouTube's names
        ("Juno_00.00.32.000-00.00.40.000", "Juno_00.00.32.000-00.00.40.500", False),
        ("v/a.mp4", "w/a.mp4", False),
    ],
)
def test_what_is_one_video(name: str, other: str, are_one: bool) -> None:
    assert (video_key(name) == video_key(other)) == are_one


def test_a_second_name_adds_its_captions(caplog: pytest.LogCaptureFixture) -> None:
    second = replace(FIRST, video_id="v/a.mp4", path="v/a.mp4", source="v/a.mp4", captions=("two",))
    third = replace(FIRST, video_id="w/a.mp4", source="w/a.mp4")
    with caplog.at_level(logging.WARNING):
        clips = _listed(FIRST, second, third)
    assert clips == [replace(FIRST, captions=("one", "two")), third]
    assert "listed videos: 1, such as v/a.mp4 of v/a.mov" in caplog.text


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (FIRST, "v/a.mov is listed twice, first in list, line 1; remove"),
        (replace(FIRST, split="test"), "line 1, with the split 'train' and not 'test'"),
        (replace(FIRST, class_name="run"), "line 1, with the class 'wave' and not 'run'"),
        (replace(FIRST, source="film"), "line 1, with the source 'v/a' and not 'film'"),
        (
            replace(FIRST, video_id="v/a.mp4", split="val"),
            r"v/a\.mp4 is listed twice, first in list, line 1 as v/a\.mov, with the split",
        ),
    ],
)
def test_a_conflict_names_both_places(other: Clip, told: str) -> None:
    with pytest.raises(ValueError, match=f"^list, line 2: .*{told}"):
        _listed(FIRST, other)


def test_one_name_is_listed_several_times_only_where_each_line_is_a_caption() -> None:
    assert _listed(FIRST, FIRST, again=True) == [replace(FIRST, captions=("one", "one"))]


def test_labels_index_the_sorted_classes() -> None:
    clips = [replace(FIRST, class_name=name) for name in ("b", "a", "b")]
    assert [clip.label for clip in number_classes(clips)] == [1, 0, 1]


def _second_name(path: Path) -> None:
    """Lists a video of a retrieval set again, under a second name and with another caption."""
    text = path.read_text()
    if path.name == "clips.csv":
        path.write_text(text + "a/clip0.webm,train,dive,three,film0\n")
    elif path.suffix == ".csv":
        name, *times = text.splitlines()[0].split("\t")
        path.write_text(text + "\t".join([f"{name}.mp4", *times[:-1], "three"]) + "\n")
    else:
        entries = json.loads(text)
        if isinstance(entries, dict):
            name = next(iter(entries))
            entries[f"{name}.mp4"] = entries[name] | {"sentences": ["three"]}
        elif "video" in entries[0]:
            video = entries[0]["video"].replace(".mov", ".avi")
            entries.append(entries[0] | {"video": video, "description": "three"})
        else:
            video = entries[0]["videoID"] + ".webm"
            entries.append(entries[0] | {"videoID": video, "enCap": ["three"]})
        path.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("didemo", "train_data.json"),
        ("vatex", "vatex_training_v1.0.json"),
        ("lsmdc", "LSMDC16_annos_training.csv"),
        ("activitynet", "train.json"),
        ("csv-captions", "clips.csv"),
    ],
)
def test_every_reader_makes_one_clip_of_two_names(
    make_tree: MakeTree, name: str, file: str
) -> None:
    root = make_tree(name)
    for ids in root.glob("*_ids.json"):
        ids.unlink()
    before = DATASETS[name].read(root, 1)
    _second_name(root / file)
    after = DATASETS[name].read(root, 1)
    assert [(clip.video_id, clip.path) for clip in after] == [(c.video_id, c.path) for c in before]
    changed = [(a, b) for a, b in zip(after, before, strict=True) if a != b]
    assert len(changed) == 1
    assert " ".join(changed[0][0].captions) == " ".join([*changed[0][1].captions, "three"])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hmdb51", "testTrainMulti_7030_splits/*_split1.txt"),
        ("ucf101", "ucfTrainTestlist/testlist01.txt"),
    ],
)
def test_a_second_name_of_a_recognition_clip_is_no_second_clip(
    make_tree: MakeTree, name: str, file: str
) -> None:
    root = make_tree(name)
    before = DATASETS[name].read(root, 1)
    path = next(root.glob(file))
    lines = path.read_text()
    first = lines.splitlines()[0]
    path.write_text(f"{lines}{first.replace('.avi', '.mp4')}\n")
    assert DATASETS[name].read(root, 1) == before
    path.write_text(f"{lines}{first}\n")
    with pytest.raises(ValueError, match="is listed twice"):
        DATASETS[name].read(root, 1)
