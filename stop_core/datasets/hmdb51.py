"""HMDB51: 51 human actions, 6766 clips, three official folds.

The layout that the official archives unpack to:

    <root>/hmdb51_org/<class>/<name>.avi
    <root>/testTrainMulti_7030_splits/<class>_test_split<fold>.txt

A line of a split file is `<name>.avi <code>`, the code being 0 (unused in this fold), 1 (training)
or 2 (test). Official test clips stay test clips; validation is carved from training.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from stop_core.datasets.annotations import class_label, read_lines, require_folder, safe_name
from stop_core.datasets.clip import NO_LABEL, Clip, Split
from stop_core.datasets.listing import Listing, number_classes
from stop_core.datasets.validation_split import carve_validation
from stop_core.datasets.video_files import VideoFiles

HMDB51_VIDEOS = "hmdb51_org"
HMDB51_SPLITS = "testTrainMulti_7030_splits"
HMDB51_FOLDS = 3

_CODES: dict[str, Split | None] = {"0": None, "1": "train", "2": "test"}


def read_hmdb51(root: Path, fold: int) -> list[Clip]:
    """Lists the training, validation and test clips of one fold.

    Args:
        root: the folder that holds `hmdb51_org` and `testTrainMulti_7030_splits`.
        fold: 1, 2 or 3.

    Returns:
        The clips by class, in the order of the split files. Labels index the sorted class names.

    Raises:
        FileNotFoundError: if the root, its videos or its split files are not there.
        ValueError: if a line of a split file cannot be read; the message names file and line.
    """
    annotations = _annotation_files(root, fold)
    files = VideoFiles(root, HMDB51_VIDEOS)
    listing = Listing()
    for folder in sorted(annotations):
        _read_class(annotations[folder], folder, files, listing)
    return carve_validation(number_classes(listing.finish()))


def source_video(stem: str, class_name: str) -> str:
    """Returns the source video of a clip, from the clip's file name without its extension.

    HMDB51 names read `<source>_<class>_<visible>_<camera>_np<people>_<view>_<quality>_<number>`,
    for example `April_09_brush_hair_u_nm_np1_ba_goo_0`. A name of another form is its own source.
    """
    tail = rf"_{re.escape(class_name)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+"
    match = re.fullmatch(rf"(.+){tail}", stem)
    return match[1] if match else stem


def _annotation_files(root: Path, fold: int) -> dict[str, Path]:
    """Returns the split file of every class, by class name."""
    for part in (HMDB51_VIDEOS, HMDB51_SPLITS):
        layout = f"{HMDB51_VIDEOS}/<class>/*.avi and {HMDB51_SPLITS}/<class>_test_split{fold}.txt"
        require_folder(root, part, layout)
    ending = f"_test_split{fold}.txt"
    files = {
        path.name.removesuffix(ending): path
        for path in (root / HMDB51_SPLITS).glob(f"*{ending}")
        if not path.name.startswith(".")
    }
    if not files:
        raise FileNotFoundError(
            f"{root / HMDB51_SPLITS} holds no split file of fold {fold} (<class>{ending}): "
            "unpack test_train_splits.rar there, or choose another --fold"
        )
    return files


def _read_class(path: Path, folder: str, files: VideoFiles, listing: Listing) -> None:
    """Lists the training and test clips of one split file."""
    class_name = class_label(folder, str(path))
    for where, name, split in _read_codes(path):
        stem = Path(name).stem
        clip = Clip(
            video_id=f"{class_name}/{stem}",
            path=files.at(f"{HMDB51_VIDEOS}/{folder}/{name}") if split else "",
            split=split or "train",
            label=NO_LABEL,
            class_name=class_name,
            source=source_video(stem, class_name),
        )
        if split is None:
            listing.is_new(clip, where, split="unused", name=f"{class_name}/{name}")
        else:
            listing.add(clip, where, name=f"{class_name}/{name}")


def _read_codes(path: Path) -> Iterator[tuple[str, str, Split | None]]:
    """Yields the location, the file name and the split of each line."""
    for where, line in read_lines(path):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in _CODES:
            raise ValueError(
                f"{where}: expected '<file name> <0, 1 or 2>', found {line.strip()!r}; "
                "unpack the split files afresh"
            )
        yield where, safe_name(fields[0], where), _CODES[fields[1]]
