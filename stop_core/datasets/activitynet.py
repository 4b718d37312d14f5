"""ActivityNet Captions for paragraph-to-video retrieval: 10,009 and 4,917 videos.

The official captions, and the videos anywhere below the root, with or without `v_`:

    <root>/train.json, val_1.json           {"v_<id>": {"duration", "timestamps", "sentences"}}
    <root>/train_ids.json, val_ids.json     ["v_<id>", ...]
    <root>/videos/v_<id>.mp4                or .mkv, .webm, ...

All sentences of a video, joined in their order, are its one caption. As is usual, `val_1.json` is
the test set; validation is carved from training. Of the videos in an id list, those with sentences
are read; without an id list, all that have sentences.
"""

from pathlib import Path

from stop_core.datasets.annotations import get_texts, read_annotations, safe_name
from stop_core.datasets.clip import Clip, Split
from stop_core.datasets.data_root import DataRoot
from stop_core.datasets.validation_split import carve_validation

_LAYOUT = "train.json, val_1.json, train_ids.json, val_ids.json and the videos as v_<id>.mp4"
_LISTS: tuple[tuple[str, str, Split], ...] = (
    ("train.json", "train_ids.json", "train"),
    ("val_1.json", "val_ids.json", "test"),
)


def read_activitynet(root: Path) -> list[Clip]:
    """Lists the training, validation and test clips."""
    data = DataRoot(root, _LAYOUT)
    for captions, listed, split in _LISTS:
        file, ids = data.find(captions), data.look_for(listed)
        videos = read_annotations(file, dict)
        names = list(videos) if ids is None else read_annotations(ids, list)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{ids}: expected a list of texts in JSON")
        for v in filter(videos.__contains__, names):
            where = f"{file}, entry {v}"
            safe_name(v, where)
            if not isinstance(videos[v], dict):
                raise ValueError(f"{where}: expected an object, found {videos[v]!r}")
            paragraph = " ".join(get_texts(videos[v], "sentences", where))
            paths = {"default": f"videos/{v}.mp4", "other_name": v.removeprefix("v_")}
            data.add_captioned(where, v, split, [paragraph], source=v, **paths)
    return carve_validation(data.finish())
