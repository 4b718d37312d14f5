"""UCF101: 101 human actions, 13320 clips, three official folds.

The layout that the official archives unpack to:

    <root>/UCF-101/<class>/v_<class>_g<group>_c<clip>.avi
    <root>/ucfTrainTestlist/classInd.txt, trainlist0<fold>.txt, testlist0<fold>.txt

The clips of one group are cut from one video. Validation is carved from training, by group.
"""

import re
from pathlib import Path, PurePosixPath

from stop_core.datasets.annotations import class_label, read_lines, safe_name
from stop_core.datasets.clip import Clip, Split, tidied
from stop_core.datasets.data_root import DataRoot
from stop_core.datasets.validation_split import carve_validation

UCF101_VIDEOS = "UCF-101"
UCF101_SPLITS = "ucfTrainTestlist"
_LAYOUT = (
    f"{UCF101_VIDEOS}/<class>/*.avi and {UCF101_SPLITS}/ with classInd.txt, trainlist0<fold>.txt "
    "and testlist0<fold>.txt"
)
_LISTS: tuple[tuple[str, Split], ...] = (("trainlist", "train"), ("testlist", "test"))


def read_ucf101(root: Path, fold: int) -> list[Clip]:
    """Lists the training, validation and test clips of one fold; labels follow `classInd.txt`."""
    data = DataRoot(root, _LAYOUT, UCF101_VIDEOS)
    labels = _read_labels(data.find("classInd.txt"))
    for name, split in _LISTS:
        for where, line in read_lines(data.find(f"{name}{fold:02d}.txt")):
            listed, *number = line.split()
            folder, _, file = listed.partition("/")
            class_name, stem = tidied(folder), PurePosixPath(file).stem
            if class_name not in labels or len(number) > 1:
                raise ValueError(
                    f"{where}: expected '<class>/<file>', in a training list with the class's "
                    f"number, found {line!r}"
                )
            if number and number[0] != str(labels[class_name] + 1):
                raise ValueError(
                    f"{where}: {class_name} has number {number[0]}, in classInd.txt "
                    f"{labels[class_name] + 1}"
                )
            safe_name(file, where)
            v, path = f"{class_name}/{stem}", data.files.at(f"{UCF101_VIDEOS}/{folder}/{file}")
            source = video_group(stem, class_name)
            clip = Clip(v, path, split, labels[class_name], class_name, source)
            data.add(clip, where, name=f"{class_name}/{file}")
    return carve_validation(data.finish())


def video_group(stem: str, class_name: str) -> str:
    """Returns the group of a clip; groups of two classes with one number are different videos."""
    match = re.search(r"_g(\d+)_c\d+$", stem)
    return f"{class_name}/g{match[1]}" if match else f"{class_name}/{stem}"


def _read_labels(path: Path) -> dict[str, int]:
    """Reads `<number from 1> <class>` lines into labels from 0."""
    labels: dict[str, int] = {}
    for where, line in read_lines(path):
        fields = line.split()
        if len(fields) != 2 or fields[0] != str(len(labels) + 1):
            raise ValueError(f"{where}: expected '{len(labels) + 1} <class>', found {line!r}")
        label = class_label(safe_name(fields[1], where), where)
        if label in labels:
            raise ValueError(f"{where}: {label} is the name of two classes; mend that line")
        labels[label] = len(labels)
    return labels
