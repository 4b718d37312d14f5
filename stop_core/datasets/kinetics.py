"""Kinetics-400, -600 or -700: clips of ten seconds from YouTube.

The official lists, and the videos wherever the common downloads put them below the root:

    <root>/annotations/train.csv, val.csv (or validate.csv), test.csv
    <root>/train/<class>/<youtube id>_<start>_<end>.mp4     start and end in seconds, six digits

A list has the columns label, youtube_id, time_start, time_end, split. Published accuracies are
mostly those of the official validation split: `val_as_test` takes that as test, and carves
validation from training by YouTube video.
"""

from pathlib import Path

from stop_core.datasets.annotations import read_csv_rows, safe_name
from stop_core.datasets.clip import NO_LABEL, Clip, Split, tidied
from stop_core.datasets.data_root import DataRoot, number_classes
from stop_core.datasets.validation_split import carve_validation

_LAYOUT = (
    "annotations/ with train.csv, val.csv and test.csv, and the videos as "
    "<youtube id>_<start>_<end>.mp4"
)
_FILES = {"train": ("train",), "validation": ("val", "validate"), "test": ("test",)}


def read_kinetics(root: Path, *, val_as_test: bool = False) -> list[Clip]:
    """Lists the training, validation and test clips; labels index the sorted classes."""
    lists: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
    if val_as_test:
        lists = {"train": "train", "validation": "test"}
    data = DataRoot(root, _LAYOUT)
    for name, split in lists.items():
        stems = [f"{prefix}{file}" for file in _FILES[name] for prefix in ("", "kinetics_")]
        path = data.find(*(f"{stem}.csv" for stem in stems))
        # The official test lists of 400 and 600 classes have no column for the label.
        columns = ("youtube_id", "time_start", "time_end", *(() if name == "test" else ("label",)))
        for where, row in read_csv_rows(path, *columns):
            youtube_id = safe_name(row["youtube_id"], where)
            if not (label := tidied(row.get("label", ""))):
                hint = "; --dataset kinetics-val needs no test list" if name == "test" else ""
                raise ValueError(f"{where}: {youtube_id} has no label{hint}")
            try:
                start, end = int(float(row["time_start"])), int(float(row["time_end"]))
            except (ValueError, OverflowError):
                raise ValueError(
                    f"{where}: expected seconds, found {row['time_start']!r} and "
                    f"{row['time_end']!r}"
                ) from None
            v, class_name = f"{youtube_id}_{start:06d}_{end:06d}", safe_name(label, where)
            file = data.files.named(v) or f"{_FILES[name][0]}/{class_name}/{v}.mp4"
            data.add(Clip(v, file, split, NO_LABEL, class_name, youtube_id), where)
    clips = number_classes(data.finish())
    return carve_validation(clips) if val_as_test else clips
