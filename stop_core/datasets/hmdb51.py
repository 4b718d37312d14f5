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

from stop_core.datasets.clip import Clip, Split
from stop_core.datasets.validation import carve_validation

VIDEOS = "hmdb51_org"
ANNOTATIONS = "testTrainMulti_7030_splits"
FOLDS = 3

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
    clips = [
        clip
        for label, class_name in enumerate(sorted(annotations))
        for clip in _read_class(annotations[class_name], class_name, label)
    ]
    return carve_validation(clips)


def source_of(stem: str, class_name: str) -> str:
    """Returns the source video of a clip, from the clip's file name without its extension.

    HMDB51 names read `<source>_<class>_<visible>_<camera>_np<people>_<view>_<quality>_<number>`,
    for example `April_09_brush_hair_u_nm_np1_ba_goo_0`. A name of another form is its own source.
    """
    tail = rf"_{re.escape(class_name)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+"
    match = re.fullmatch(rf"(.+){tail}", stem)
    return match[1] if match else stem


def _annotation_files(root: Path, fold: int) -> dict[str, Path]:
    """Returns the split file of every class, by class name."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"the data root {root} is not a folder: give --data-root the folder that holds "
            f"{VIDEOS} and {ANNOTATIONS}"
        )
    for part in (VIDEOS, ANNOTATIONS):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"{root} holds no folder {part}: unpack the dataset so that {root} holds "
                f"{VIDEOS}/<class>/*.avi and {ANNOTATIONS}/<class>_test_split{fold}.txt"
            )
    ending = f"_test_split{fold}.txt"
    files = {
        path.name.removesuffix(ending): path
        for path in (root / ANNOTATIONS).glob(f"*{ending}")
        if not path.name.startswith(".")
    }
    if not files:
        raise FileNotFoundError(
            f"{root / ANNOTATIONS} holds no split file of fold {fold} (<class>{ending}): "
            "unpack test_train_splits.rar there, or choose another --fold"
        )
    return files


def _read_class(path: Path, class_name: str, label: int) -> Iterator[Clip]:
    """Yields the training and test clips of one split file."""
    seen: set[str] = set()
    for where, name, split in _read_lines(path):
        stem = Path(name).stem
        if stem in seen:
            raise ValueError(f"{where}: {name} is listed twice; remove one of the two lines")
        seen.add(stem)
        if split is not None:
            yield Clip(
                video_id=f"{class_name}/{stem}",
                path=f"{VIDEOS}/{class_name}/{name}",
                split=split,
                label=label,
                class_name=class_name,
                source=source_of(stem, class_name),
            )


def _read_lines(path: Path) -> Iterator[tuple[str, str, Split | None]]:
    """Yields where a line stands, the file name on it and its split; passes over blank lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) != 2 or fields[1] not in _CODES or Path(fields[0]).name != fields[0]:
            raise ValueError(
                f"{where}: expected '<file name> <0, 1 or 2>', found {line.strip()!r}; "
                "unpack the split files afresh"
            )
        yield where, fields[0], _CODES[fields[1]]
