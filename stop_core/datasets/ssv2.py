"""Something-Something V2: 174 actions with objects, 220,847 clips.

The layout that the official archives unpack to, labels in a folder or next to the folder of videos:

    <root>/20bn-something-something-v2/<id>.webm
    <root>/labels/labels.json, train.json, validation.json, test.json, test-answers.csv

Older packages call the files something-something-v2-train.json and so on. The answers to the test
split were withheld for years, so published accuracies are those of the official validation split:
`val_as_test` takes that as test, and carves validation from training.
"""

from pathlib import Path

from stop_core.datasets.annotations import (
    class_label,
    get_field,
    read_annotations,
    read_entries,
    read_lines,
    safe_name,
)
from stop_core.datasets.clip import Clip, Split, tidied
from stop_core.datasets.data_root import DataRoot
from stop_core.datasets.validation_split import carve_validation

_VIDEOS = "20bn-something-something-v2"
_LAYOUT = (
    f"{_VIDEOS}/<id>.webm and labels/ with labels.json, train.json, validation.json, test.json "
    "and test-answers.csv"
)


def read_ssv2(root: Path, *, val_as_test: bool = False) -> list[Clip]:
    """Lists the training, validation and test clips."""
    lists: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
    if val_as_test:
        lists = {"train": "train", "validation": "test"}
    data = DataRoot(root, _LAYOUT)
    labels = _read_labels(_find(data, "labels"))
    for name, split in lists.items():
        answers = _read_answers(data.find("test-answers.csv")) if name == "test" else None
        path = _find(data, name)
        for where, entry in read_entries(path, read_annotations(path, list)):
            if answers is None:
                template = get_field(entry, "template", str, where)
            v = get_field(entry, "id", str, where)
            if answers is not None:
                if v not in answers:
                    raise ValueError(f"{where}: test-answers.csv has no line for the video {v}")
                template = answers[v]
            class_name = tidied(template.replace("[", "").replace("]", ""))
            if class_name not in labels:
                raise ValueError(f"{where}: labels.json does not have the class {class_name!r}")
            safe_name(v, where)
            file = data.files.named(v) or f"{_VIDEOS}/{v}.webm"
            # The annotation does not say who filmed a clip, so it is its own source.
            data.add(Clip(v, file, split, labels[class_name], class_name, source=v), where)
    return carve_validation(data.finish()) if val_as_test else data.finish()


def _find(data: DataRoot, name: str) -> Path:
    return data.find(f"{name}.json", f"something-something-v2-{name}.json")


def _read_labels(path: Path) -> dict[str, int]:
    """Reads {"Holding something": "0", ...} into labels in the order of the numbers."""
    numbers = read_annotations(path, dict)
    names = sorted(numbers, key=lambda name: (len(str(numbers[name])), str(numbers[name])))
    labels = {class_label(name, str(path)): label for label, name in enumerate(names)}
    if len(labels) < len(names):
        twice = [name for name in names if tidied(name) != name]
        raise ValueError(f"{path}: {twice[0]!r} is the name of another class too; remove it")
    return labels


def _read_answers(path: Path) -> dict[str, str]:
    answers: dict[str, str] = {}
    for where, line in read_lines(path):
        video_id, separator, class_name = line.partition(";")
        if not separator:
            raise ValueError(f"{where}: expected '<id>;<class>', found {line!r}")
        if answers.setdefault(video_id, class_name) != class_name:
            raise ValueError(f"{where}: {video_id} has another class on a line above")
    return answers
