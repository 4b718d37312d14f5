"""Something-Something V2: 174 actions with objects, 220,847 clips.

The layout that the official archives unpack to, labels in a folder or beside the videos' one:

    <root>/20bn-something-something-v2/<id>.webm
    <root>/labels/labels.json, train.json, validation.json, test.json, test-answers.csv

Older packages call the files something-something-v2-train.json and so on. The answers to the test
split were withheld for years, so published accuracies are those of the official validation split:
`read_ssv2_val` takes that as test, and carves validation from training.
"""

from collections.abc import Iterator
from pathlib import Path

from stop_core.datasets.annotations import (
    Listed,
    find_annotation,
    get_field,
    read_entries,
    read_json,
    read_lines,
    require_root,
    safe_name,
)
from stop_core.datasets.clip import Clip, Split
from stop_core.datasets.validation import carve_validation
from stop_core.datasets.video_files import VideoFiles

VIDEOS = "20bn-something-something-v2"

_LAYOUT = (
    f"{VIDEOS}/<id>.webm and labels/ with labels.json, train.json, validation.json, test.json and "
    "test-answers.csv"
)


def read_ssv2(root: Path) -> list[Clip]:
    """Lists the official training, validation and test clips.

    Raises:
        FileNotFoundError: if the root or an annotation file is not there.
        ValueError: if an annotation cannot be read; the message names file and line or entry.
    """
    reader = _Reader(root)
    return [
        *reader.read("train", "train"),
        *reader.read("validation", "val"),
        *reader.read_test(),
    ]


def read_ssv2_val(root: Path) -> list[Clip]:
    """As `read_ssv2`, with the official validation clips as test; needs no answers to the test."""
    reader = _Reader(root)
    return carve_validation([*reader.read("train", "train"), *reader.read("validation", "test")])


class _Reader:
    """The labels, the files and what has been listed so far."""

    def __init__(self, root: Path) -> None:
        require_root(root, _LAYOUT)
        self.root = root
        path = self._annotation("labels")
        # {"Holding something": "0", ...}, in the order of the numbers.
        numbers = read_json(path, dict)
        names = sorted(numbers, key=lambda name: (len(str(numbers[name])), str(numbers[name])))
        self.labels = {name: label for label, name in enumerate(names)}
        self.files = VideoFiles(root)
        self.listed = Listed()

    def read(self, name: str, split: Split) -> Iterator[Clip]:
        """Yields the clips of `train` or `validation`."""
        path = self._annotation(name)
        for where, entry in read_entries(path, read_json(path, list)):
            template = get_field(entry, "template", str, where)
            yield self._clip(get_field(entry, "id", str, where), template, split, where)

    def read_test(self) -> Iterator[Clip]:
        """Yields the test clips, with their classes from the answers, `<id>;<class>` lines."""
        path = find_annotation(self.root, "test-answers.csv", layout=_LAYOUT)
        answers: dict[str, str] = {}
        for where, line in read_lines(path):
            video_id, separator, class_name = line.partition(";")
            if not separator:
                raise ValueError(f"{where}: expected '<id>;<class>', found {line!r}")
            answers[video_id] = class_name
        path = self._annotation("test")
        for where, entry in read_entries(path, read_json(path, list)):
            video_id = get_field(entry, "id", str, where)
            if video_id not in answers:
                raise ValueError(f"{where}: test-answers.csv has no line for the video {video_id}")
            yield self._clip(video_id, answers[video_id], "test", where)

    def _clip(self, video_id: str, template: str, split: Split, where: str) -> Clip:
        class_name = template.replace("[", "").replace("]", "").strip()
        if class_name not in self.labels:
            raise ValueError(f"{where}: labels.json does not have the class {class_name!r}")
        self.listed.add(safe_name(video_id, where), where)
        return Clip(
            video_id=video_id,
            path=self.files.named(video_id) or f"{VIDEOS}/{video_id}.webm",
            split=split,
            label=self.labels[class_name],
            class_name=class_name,
            source=video_id,  # the annotation does not say who filmed a clip
        )

    def _annotation(self, name: str) -> Path:
        names = (f"{name}.json", f"something-something-v2-{name}.json")
        return find_annotation(self.root, *names, layout=_LAYOUT)
