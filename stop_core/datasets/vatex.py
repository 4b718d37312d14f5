"""VATEX for retrieval: 34,991 clips from Kinetics-600 with ten English sentences each.

The official captions, and the videos anywhere below the root:

    <root>/vatex_training_v1.0.json                 [{"videoID", "enCap": [...], "chCap": [...]}]
    <root>/vatex_validation_v1.0.json
    <root>/vatex_public_test_english_v1.1.json
    <root>/videos/<youtube id>_<start>_<end>.mp4

Most published retrieval figures use the split of HGR instead, in which 1,500 of the 3,000
validation videos are the test: `read_vatex_1k5`, with

    <root>/test_list.txt                            one videoID per line
"""

import re
from dataclasses import replace
from pathlib import Path

from stop_core.datasets.annotations import (
    get_field,
    get_texts,
    read_annotations,
    read_entries,
    read_names,
    safe_name,
)
from stop_core.datasets.clip import Clip, Split
from stop_core.datasets.data_root import DataRoot
from stop_core.datasets.video_files import video_key

_FILES: dict[Split, str] = {
    "train": "vatex_training_v1.0.json",
    "val": "vatex_validation_v1.0.json",
    "test": "vatex_public_test_english_v1.1.json",
}


def read_vatex(root: Path) -> list[Clip]:
    """Lists the official training, validation and public test clips."""
    return _read(root, "train", "val", "test")


def read_vatex_1k5(root: Path) -> list[Clip]:
    """Like `read_vatex`, with the videos of `test_list.txt` as test in place of the public test."""
    clips = _read(root, "train", "val")
    path = DataRoot(root, f"{_FILES['train']}, {_FILES['val']}").find("test_list.txt")
    validation = {clip.video_id for clip in clips if clip.split == "val"}
    chosen = set()
    for where, video_id in read_names(path):
        if video_id not in validation:
            raise ValueError(f"{where}: {video_id} is not a video of {_FILES['val']}")
        chosen.add(video_id)
    return [replace(clip, split="test") if clip.video_id in chosen else clip for clip in clips]


def _read(root: Path, *splits: Split) -> list[Clip]:
    data = DataRoot(root, f"{', '.join(_FILES[split] for split in splits)} and the videos")
    for split in splits:
        path = data.find(_FILES[split])
        for where, entry in read_entries(path, read_annotations(path, list)):
            texts = get_texts(entry, "enCap", where)
            v = safe_name(get_field(entry, "videoID", str, where), where)
            source = re.sub(r"_\d{6}_\d{6}$", "", video_key(v))
            data.add_captioned(where, v, split, texts, source=source, default=f"videos/{v}.mp4")
    return data.finish()
