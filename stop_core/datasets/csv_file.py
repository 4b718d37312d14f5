"""Own videos in a table of splits, classes or captions, and sources.

    <root>/clips.csv     path,split,label            for recognition
                         path,split,caption          for retrieval; one row per caption
                         a further column, source, names the longer video of a clip

`path` is relative to the root. Several rows of one path add captions to it. If no row is for
val, it is carved from training, by source.
"""

from pathlib import Path

from stop_core.datasets.annotations import find_annotation, read_csv_rows, safe_path
from stop_core.datasets.clip import NO_LABEL, SPLITS, Clip, Split, Task, tidied
from stop_core.datasets.listing import Listing, number_classes
from stop_core.datasets.validation_split import carve_validation
from stop_core.datasets.video_files import VideoFiles

TABLE = "clips.csv"


def read_csv(root: Path, task: Task) -> list[Clip]:
    """Lists the videos of `clips.csv` in its order; labels index the sorted class names.

    Args:
        root: the folder that holds `clips.csv`, and to which its paths are relative.
        task: "recognition" needs the column `label`, "retrieval" the column `caption`.

    Raises:
        FileNotFoundError: if the root or the table is not there.
        ValueError: if a row cannot be read; the message names file and line.
    """
    column = "label" if task == "recognition" else "caption"
    layout = f"{TABLE} with the columns path, split, {column}, and the videos"
    clips = _read_rows(root, find_annotation(root, TABLE, layout=layout), column)
    clips = clips if task == "retrieval" else number_classes(clips)
    has_val = any(clip.split == "val" for clip in clips)
    return clips if has_val else carve_validation(clips)


def _read_rows(root: Path, table: Path, column: str) -> list[Clip]:
    split_of: dict[str, Split] = {split: split for split in SPLITS}
    files = VideoFiles(root)
    listing = Listing()
    for where, row in read_csv_rows(table, "path", "split", column):
        path = safe_path(row["path"], where)
        names = ("split", "label", "caption", "source")
        values = {name: tidied(row.get(name, "")) for name in names}
        split = split_of.get(values["split"])
        if split is None:
            raise ValueError(
                f"{where}: split is {row['split']!r}, expected one of {', '.join(SPLITS)}"
            )
        if not values[column]:
            raise ValueError(f"{where}: {path} has no {column}")
        label = values["label"] if column == "label" else ""
        captions = tuple(filter(None, [values["caption"]]))
        source = values["source"] or path
        clip = Clip(path, files.at(path), split, NO_LABEL, label, source, captions)
        listing.add(clip, where, again="caption" in row)
    return listing.finish()
