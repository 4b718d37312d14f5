"""MSR-VTT: all sentences train, one sentence tests, and no video does both."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.msrvtt import read_msrvtt

MakeTree = Callable[[str], Path]


def test_training_has_every_sentence_in_order_and_test_the_one_of_the_list(
    make_tree: MakeTree,
) -> None:
    clips = {clip.video_id: clip for clip in read_msrvtt(make_tree("msrvtt"), "9k")}
    assert clips["video3"].captions == tuple(f"sentence {k} of video 3" for k in range(3))
    assert clips["video9"].captions == ("the sentence of video 9",)
    assert clips["video9"].split == "test"
    assert clips["video9"].path == "videos/all/video9.mp4"


def test_an_empty_sentence_among_others_is_passed_over(make_tree: MakeTree) -> None:
    root = make_tree("msrvtt")
    path = root / "MSRVTT_data.json"
    data = json.loads(path.read_text())
    data["sentences"][3]["caption"] = " "
    data["sentences"][4]["caption"] = ""
    path.write_text(json.dumps(data))
    clips = {clip.video_id: clip for clip in read_msrvtt(root, "9k")}
    for video in ("video3", "video4"):
        assert clips[video].captions == tuple(
            f"sentence {k} of {video[:5]} {video[5]}" for k in (1, 2)
        )
    data["sentences"][4]["caption"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"entry 5: expected a text 'caption', found None"):
        read_msrvtt(root, "9k")


def test_clips_of_one_address_are_one_source(make_tree: MakeTree) -> None:
    clips = {clip.video_id: clip for clip in read_msrvtt(make_tree("msrvtt"), "9k")}
    for k in range(4):
        first, second = clips[f"video{2 * k}"], clips[f"video{2 * k + 1}"]
        assert first.source == second.source
        assert first.split == second.split


def test_real_lists_have_the_counts_of_the_protocols(
    real_annotations: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in real_annotations("msrvtt").iterdir():
        (tmp_path / path.name).symlink_to(path)
    data = {
        "videos": [{"video_id": f"video{i}", "url": f"u{i // 3}"} for i in range(10000)],
        "sentences": [{"video_id": f"video{i}", "caption": f"c{i}"} for i in range(10000)],
    }
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(data))
    for training, count in (("9k", 9000), ("7k", 7010)):
        clips = read_msrvtt(tmp_path, training)
        counts = Counter(clip.split for clip in clips)
        assert counts["train"] + counts["val"] == count
        assert counts["test"] == 1000
        assert counts["val"] == pytest.approx(count / 10, rel=0.01)
    with (tmp_path / "MSRVTT_JSFUSION_test.csv").open(newline="") as file:
        sentences = {row["video_id"]: row["sentence"] for row in csv.DictReader(file)}
    tests = [clip for clip in clips if clip.split == "test"]
    assert all(clip.captions == (" ".join(sentences[clip.video_id].split()),) for clip in tests)


def test_a_video_in_both_lists_is_refused(make_tree: MakeTree) -> None:
    root = make_tree("msrvtt")
    with (root / "MSRVTT_JSFUSION_test.csv").open("a") as file:
        file.write("ret9,msr5,video5,a sentence\n")
    with pytest.raises(
        ValueError, match=r"test\.csv, line 6: video5 is listed twice, first in .*9k\.csv, line 7"
    ):
        read_msrvtt(root, "9k")


def test_a_video_without_a_sentence_is_named(make_tree: MakeTree) -> None:
    root = make_tree("msrvtt")
    with (root / "MSRVTT_train.9k.csv").open("a") as file:
        file.write("video99\n")
    with pytest.raises(ValueError, match=r"9k\.csv, line 10: video99 has no caption"):
        read_msrvtt(root, "9k")
