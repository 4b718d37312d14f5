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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stop_core.datasets.annotations import (
    find_annotation,
    get_field,
    read_annotations,
    read_entries,
    read_names,
    require_root,
    safe_name,
)
from stop_core.datasets.clip import Clip, Split, captioned_clip
from stop_core.datasets.listing import Listing
from stop_core.datasets.video_files import VideoFiles, video_key

_FILES: dict[Split, str] = {
    "train": "vatex_training_v1.0.json",
    "val": "vatex_validation_v1.0.json",
    "test": "vatex_public_test_english_v1.1.json",
}


def read_vatex(root: Path) -> list[Clip]:
    """Lists the official training, validation and public test clips.

    Raises:
        FileNotFoundError: if the root or an annotation file is not there.
        ValueError: if an annotation cannot be read, or a video is in two splits; the message names
            file and line or entry.
    """
    return _read(root, "train", "val", "test")


def read_vatex_1k5(root: Path) -> list[Clip]:
    """Like `read_vatex`, with the videos of `test_list.txt` as test in place of the public test."""
    clips = _read(root, "train", "val")
    path = find_annotation(root, "test_list.txt", layout=f"{_FILES['train']}, {_FILES['val']}")
    validation = {clip.video_id for clip in clips if clip.split == "val"}
    chosen = set()
    for where, video_id in read_names(path):
        if video_id not in validation:
            raise ValueError(f"{where}: {video_id} is not a video of {_FILES['val']}")
        chosen.add(video_id)
    return [replace(clip, split="test") if clip.video_id in chosen else clip for clip in clips]


def _read(root: Path, *splits: Split) -> list[Clip]:
    layout = f"{', '.join(_FILES[split] for split in splits)} and the videos"
    require_root(root, layout)
    files = VideoFiles(root)
    listing = Listing()
    for split in splits:
        for where, video_id, captions in _read_captions(
            find_annotation(root, _FILES[split], layout=layout)
        ):
            path = files.named(video_id) or f"videos/{video_id}.mp4"
            source = re.sub(r"_\d{6}_\d{6}$", "", video_key(video_id))
            listing.add(captioned_clip(video_id, path, split, source, captions, where), where)
    return listing.finish()


def _read_captions(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    for where, entry in read_entries(path, read_annotations(path, list)):
        captions = get_field(entry, "enCap", list, where)
        if not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"{where}: expected a list of texts, found {captions!r}")
        yield where, safe_name(get_field(entry, "videoID", str, where), where), captions
