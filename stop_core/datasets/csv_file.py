"""One's own videos in a table: which split, which class or captions, and what they are cut from.

    <root>/clips.csv     path,split,label            for recognition
                         path,split,caption          for retrieval; one row a caption
                         a further column, source, names the longer video of a clip

`path` is relative to the root. Several rows of one path add captions to it. Where no row is for
val, it is carved from training, by source.
"""

from dataclasses import dataclass, field
from pathlib import Path

from stop_core.datasets.annotations import find_annotation, read_table, safe_path
from stop_core.datasets.clip import SPLITS, Clip, Split, Task, captioned_clip
from stop_core.datasets.validation import carve_validation

TABLE = "clips.csv"


@dataclass
class _Row:
    """What the rows of one path say."""

    where: str
    split: Split
    label: str
    source: str
    captions: list[str] = field(default_factory=list)


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
    rows = _read_rows(find_annotation(root, TABLE, layout=layout), column)
    labels = {name: i for i, name in enumerate(sorted({row.label for row in rows.values()}))}
    clips = []
    for path, row in rows.items():
        if task == "retrieval":
            clip = captioned_clip(path, path, row.split, row.source, row.captions, row.where)
        else:
            label, captions = labels[row.label], tuple(row.captions)
            clip = Clip(path, path, row.split, label, row.label, row.source, captions)
        clips.append(clip)
    has_val = any(clip.split == "val" for clip in clips)
    return clips if has_val else carve_validation(clips)


def _read_rows(table: Path, column: str) -> dict[str, _Row]:
    split_of: dict[str, Split] = {split: split for split in SPLITS}
    rows: dict[str, _Row] = {}
    for where, values in read_table(table, "path", "split", column):
        path = safe_path(values["path"], where)
        split = split_of.get(values["split"])
        if split is None:
            raise ValueError(
                f"{where}: split is {values['split']!r}, expected one of {', '.join(SPLITS)}"
            )
        if not values[column]:
            raise ValueError(f"{where}: {path} has no {column}")
        label, source = values.get("label", ""), values.get("source") or path
        row = rows.setdefault(path, _Row(where, split, label, source))
        if (row.split, row.label, row.source) != (split, label, source):
            raise ValueError(f"{where}: {path} has another split, label or source in {row.where}")
        if "caption" not in values and row.where != where:
            raise ValueError(f"{where}: {path} is listed twice, first in {row.where}")
        if values.get("caption"):
            row.captions.append(values["caption"])
    return rows
