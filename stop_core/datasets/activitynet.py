"""ActivityNet Captions for paragraph-to-video retrieval: 10,009 and 4,917 videos.

The official captions, and the videos anywhere below the root, with or without `v_`:

    <root>/train.json, val_1.json           {"v_<id>": {"duration", "timestamps", "sentences"}}
    <root>/train_ids.json, val_ids.json     ["v_<id>", ...]
    <root>/videos/v_<id>.mp4                or .mkv, .webm, ...

All sentences of a video, joined in their order, are its one caption. As is usual, `val_1.json` is
the test set; validation is carved from training. Of the videos in an id list, those with sentences
are read; without an id list, all that have sentences.
"""

from collections.abc import Iterator
from pathlib import Path

from stop_core.datasets.annotations import (
    find_annotation,
    get_field,
    look_for,
    read_annotations,
    require_root,
    safe_name,
)
from stop_core.datasets.clip import Clip, Split, captioned_clip
from stop_core.datasets.listing import Listing
from stop_core.datasets.validation_split import carve_validation
from stop_core.datasets.video_files import VideoFiles

_LAYOUT = "train.json, val_1.json, train_ids.json, val_ids.json and the videos as v_<id>.mp4"
_LISTS: tuple[tuple[str, str, Split], ...] = (
    ("train.json", "train_ids.json", "train"),
    ("val_1.json", "val_ids.json", "test"),
)


def read_activitynet(root: Path) -> list[Clip]:
    """Lists the training, validation and test clips.

    Raises:
        FileNotFoundError: if the root or a caption file is not there.
        ValueError: if an annotation cannot be read, or a video is in both; the message names file
            and entry.
    """
    require_root(root, _LAYOUT)
    files = VideoFiles(root)
    listing = Listing()
    for captions, ids, split in _LISTS:
        path = find_annotation(root, captions, layout=_LAYOUT)
        for where, video_id, paragraph in _read_paragraphs(path, look_for(root, ids)):
            file = files.named(video_id, video_id.removeprefix("v_")) or f"videos/{video_id}.mp4"
            clip = captioned_clip(video_id, file, split, video_id, [paragraph], where)
            listing.add(clip, where)
    return carve_validation(listing.finish())


def _read_paragraphs(captions: Path, ids: Path | None) -> Iterator[tuple[str, str, str]]:
    """Yields location, id and joined sentences of each video."""
    videos = read_annotations(captions, dict)
    for video_id in _chosen(videos, ids):
        where = f"{captions}, entry {video_id}"
        safe_name(video_id, where)
        if not isinstance(videos[video_id], dict):
            raise ValueError(f"{where}: expected an object, found {videos[video_id]!r}")
        sentences = get_field(videos[video_id], "sentences", list, where)
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise ValueError(f"{where}: expected a list of texts, found {sentences!r}")
        yield where, video_id, " ".join(sentences)


def _chosen(videos: dict[str, object], ids: Path | None) -> list[str]:
    if ids is None:
        return list(videos)
    names = read_annotations(ids, list)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{ids}: expected a list of texts in JSON")
    return [name for name in names if name in videos]
