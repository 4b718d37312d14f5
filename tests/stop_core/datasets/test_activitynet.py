"""ActivityNet Captions: the sentences of a video are one paragraph."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.activitynet import read_activitynet

MakeTree = Callable[[str], Path]


def test_sentences_are_joined_in_their_order_and_val_1_is_the_test(make_tree: MakeTree) -> None:
    root = make_tree("activitynet")
    (root / "videos/v_--01_abc.mp4").rename(root / "videos/--01_abc.mkv")
    clips = {clip.video_id: clip for clip in read_activitynet(root)}
    assert {clip.captions for clip in clips.values()} == {("One. Two.",)}
    assert clips["v_--01_abc"].path == "videos/--01_abc.mkv"
    assert clips["v_--21_abc"].split == "test"
    assert "v_without_captions" not in clips


def test_real_files_are_read(real_annotations: Callable[[str], Path], tmp_path: Path) -> None:
    """The files here are cut to 200 entries each, of which few are in both of a pair."""
    folder = real_annotations("activitynet")
    captions = {
        name: json.loads((folder / name).read_text()) for name in ("train.json", "val_1.json")
    }
    for name in captions:
        (tmp_path / name).symlink_to(folder / name)
    clips = read_activitynet(tmp_path)
    counts = Counter(clip.split for clip in clips)
    assert counts["train"] + counts["val"] == len(captions["train.json"])
    assert counts["test"] == len(captions["val_1.json"])
    clip = next(clip for clip in clips if clip.video_id == "v_QOlSCBRmfWY")
    (caption,) = clip.captions
    assert caption.startswith(
        "A young woman is seen standing in a room and leads into her dancing. The"
    )
    assert all("  " not in clip.captions[0] for clip in clips)

    for name in ("train_ids.json", "val_ids.json"):
        (tmp_path / name).symlink_to(folder / name)
    chosen = read_activitynet(tmp_path)
    ids = {
        i
        for name in ("train_ids.json", "val_ids.json")
        for i in json.loads((folder / name).read_text())
    }
    assert {clip.video_id for clip in chosen} == {c.video_id for c in clips} & ids


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"sentences": []}, r"entry v_new: expected a list 'sentences', found \[\]"),
        ({"sentences": [1]}, "entry v_new: expected a list of texts"),
        ({"sentences": [" "]}, "entry v_new: v_new has no caption"),
        ([], "entry v_new: expected an object"),
    ],
)
def test_a_broken_entry_is_named(make_tree: MakeTree, entry: object, told: str) -> None:
    root = make_tree("activitynet")
    (root / "train_ids.json").unlink()
    path = root / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"v_new": entry}))
    with pytest.raises(ValueError, match=rf"train\.json, {told}"):
        read_activitynet(root)
