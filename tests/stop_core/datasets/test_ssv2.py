"""Something-Something V2: templates become classes, and the name selects the test split."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.ssv2 import read_ssv2

MakeTree = Callable[[str], Path]


def test_the_official_splits_with_the_answers_to_the_test(make_tree: MakeTree) -> None:
    clips = {clip.video_id: clip for clip in read_ssv2(make_tree("ssv2"))}
    assert Counter(clip.split for clip in clips.values()) == {"train": 8, "val": 2, "test": 2}
    # The number in labels.json counts, not the place in the file.
    assert (clips["2"].class_name, clips["2"].label) == ("Holding something", 0)
    assert (clips["31"].class_name, clips["31"].split) == ("Throwing something", "test")
    assert clips["31"].path == "20bn-something-something-v2/31.webm"


def test_the_val_protocol_tests_on_validation_and_needs_no_test_files(make_tree: MakeTree) -> None:
    root = make_tree("ssv2")
    (root / "labels/test.json").unlink()
    (root / "labels/test-answers.csv").unlink()
    clips = read_ssv2(root, val_as_test=True)
    assert {clip.video_id for clip in clips if clip.split == "test"} == {"20", "21"}
    assert Counter(clip.split for clip in clips)["val"] == 2  # one a class
    with pytest.raises(FileNotFoundError, match=r"no test-answers\.csv"):
        read_ssv2(root)


def test_older_names_of_the_files_are_read_too(make_tree: MakeTree) -> None:
    root = make_tree("ssv2")
    expected = read_ssv2(root)
    for path in (root / "labels").glob("*.json"):
        path.rename(root / f"something-something-v2-{path.name}")
    assert read_ssv2(root) == expected


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"id": "9", "template": "Eating [something]"}, "entry 9: .* class 'Eating something'"),
        ({"id": "../9", "template": "Holding [something]"}, "entry 9: expected the name of a"),
        ({"id": "8", "template": "Holding [something]"}, "entry 9: 8 is listed twice, .* entry 8"),
        ({"template": "Holding [something]"}, "entry 9: expected a text 'id', found None"),
        ("9", "entry 9: expected an object"),
    ],
)
def test_a_broken_entry_is_named(make_tree: MakeTree, entry: object, told: str) -> None:
    root = make_tree("ssv2")
    path = root / "labels/train.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))
    with pytest.raises(ValueError, match=rf"train\.json, {told}"):
        read_ssv2(root)


def test_a_test_video_without_an_answer_is_named(make_tree: MakeTree) -> None:
    root = make_tree("ssv2")
    (root / "labels/test-answers.csv").write_text("31;Throwing something\n")
    with pytest.raises(ValueError, match=r"test\.json, entry 1: .* no line for the video 30"):
        read_ssv2(root)


def test_answers_and_labels_that_contradict_themselves_are_refused(make_tree: MakeTree) -> None:
    root = make_tree("ssv2")
    with (root / "labels/test-answers.csv").open("a") as file:
        file.write("31;Holding something\n")
    with pytest.raises(ValueError, match=r"answers\.csv, line 3: 31 has another class"):
        read_ssv2(root)
    labels = {"Throwing something": "1", "Holding something": "0", "Holding something ": "2"}
    (root / "labels/labels.json").write_text(json.dumps(labels))
    with pytest.raises(ValueError, match=r"labels\.json: 'Holding something ' is the name of"):
        read_ssv2(root)
