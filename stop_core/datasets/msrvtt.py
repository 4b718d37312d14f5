"""MSR-VTT for retrieval: 10,000 clips with 20 sentences each.

The files of the common split archive (msrvtt_data.zip of CLIP4Clip), and the videos anywhere below
the root:

    <root>/MSRVTT_data.json            {"videos": [...], "sentences": [...]}
    <root>/MSRVTT_train.9k.csv         or MSRVTT_train.7k.csv: one column, video_id
    <root>/MSRVTT_JSFUSION_test.csv    key, vid_key, video_id, sentence: the "1k-A" test
    <root>/videos/all/video0.mp4       or MSRVTT_Videos/, TrainValVideo/ and TestVideo/, ...

A test video has the one sentence of the test list, a training video all of its sentences.
Validation is carved from training by YouTube address: several clips are cut from one video.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from stop_core.datasets.annotations import (
    find_annotation,
    get_field,
    read_annotations,
    read_csv_rows,
    read_entries,
    require_root,
    safe_name,
)
from stop_core.datasets.clip import Clip, captioned_clip
from stop_core.datasets.listing import Listing
from stop_core.datasets.validation_split import carve_validation
from stop_core.datasets.video_files import VideoFiles

TEST = "MSRVTT_JSFUSION_test.csv"
MSRVTT_DATA = "MSRVTT_data.json"


def read_msrvtt(root: Path, training: str) -> list[Clip]:
    """Lists the training, validation and test clips.

    Args:
        root: the folder that holds the annotation files and the videos.
        training: the size of the training list, "9k" or "7k".

    Raises:
        FileNotFoundError: if the root or an annotation file is not there.
        ValueError: if an annotation cannot be read, or a video is in both lists; the message names
            file and line or entry.
    """
    train = f"MSRVTT_train.{training}.csv"
    layout = f"{MSRVTT_DATA}, {train}, {TEST} and the videos as video0.mp4 and so on"
    require_root(root, layout)
    files = VideoFiles(root)
    listing = Listing()

    def read_list(name: str, *columns: str) -> Iterator[tuple[str, dict[str, str], str, str]]:
        path = find_annotation(root, name, layout=layout)
        for where, row in read_csv_rows(path, *columns):
            video_id = safe_name(row["video_id"], where)
            yield where, row, video_id, files.named(video_id) or f"videos/all/{video_id}.mp4"

    captions, sources = _read_data(find_annotation(root, MSRVTT_DATA, layout=layout))
    for where, _, v, path in read_list(train, "video_id"):
        clip = captioned_clip(v, path, "train", sources.get(v, v), captions[v], where)
        listing.add(clip, where)
    for where, row, v, path in read_list(TEST, "video_id", "sentence"):
        clip = captioned_clip(v, path, "test", sources.get(v, v), [row["sentence"]], where)
        listing.add(clip, where)
    return carve_validation(listing.finish())


def _read_data(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Returns the sentences of each video, and the YouTube address that it was cut from."""
    data = read_annotations(path, dict)
    captions: dict[str, list[str]] = defaultdict(list)
    for where, entry in read_entries(path, data.get("sentences")):
        video_id = get_field(entry, "video_id", str, where)
        captions[video_id].append(get_field(entry, "caption", str, where, may_be_empty=True))
    sources = {
        get_field(entry, "video_id", str, where): get_field(entry, "url", str, where)
        for where, entry in read_entries(path, data.get("videos"))
    }
    return captions, sources
