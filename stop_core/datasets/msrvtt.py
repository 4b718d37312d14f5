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
from pathlib import Path

from stop_core.datasets.annotations import (
    get_field,
    read_annotations,
    read_csv_rows,
    read_entries,
    safe_name,
)
from stop_core.datasets.clip import Clip, Split
from stop_core.datasets.data_root import DataRoot
from stop_core.datasets.validation_split import carve_validation

_TEST = "MSRVTT_JSFUSION_test.csv"
_DATA = "MSRVTT_data.json"


def read_msrvtt(root: Path, training: str) -> list[Clip]:
    """Lists the training, validation and test clips; `training` is "9k" or "7k" clips."""
    train = f"MSRVTT_train.{training}.csv"
    data = DataRoot(root, f"{_DATA}, {train}, {_TEST} and the videos as video0.mp4 and so on")
    path = data.find(_DATA)
    annotations = read_annotations(path, dict)
    captions: dict[str, list[str]] = defaultdict(list)
    for where, entry in read_entries(path, annotations.get("sentences")):
        video_id = get_field(entry, "video_id", str, where)
        captions[video_id].append(get_field(entry, "caption", str, where, may_be_empty=True))
    sources = {  # YouTube addresses
        get_field(entry, "video_id", str, where): get_field(entry, "url", str, where)
        for where, entry in read_entries(path, annotations.get("videos"))
    }
    lists: tuple[tuple[Split, str, tuple[str, ...]], ...] = (
        ("train", train, ("video_id",)),
        ("test", _TEST, ("video_id", "sentence")),
    )
    for split, name, columns in lists:
        for where, row in read_csv_rows(data.find(name), *columns):
            v = safe_name(row["video_id"], where)
            texts = captions[v] if split == "train" else [row["sentence"]]
            source, default = sources.get(v, v), f"videos/all/{v}.mp4"
            data.add_captioned(where, v, split, texts, source=source, default=default)
    return carve_validation(data.finish())
