"""Something-Something V2: 174 actions with objects, 220,847 clips.

The layout that the official archives unpack to, labels in a folder or next to the folder of videos:

    <root>/20bn-something-something-v2/<id>.webm
    <root>/labels/labels.json, train.json, validation.json, test.json, test-answers.csv

Older packages call the files something-something-v2-train.json and so on. The answers to the test
split were withheld for years, so published accuracies are those of the official validation split:
`read_ssv2_val` takes that as test, and carves validation from training.
"""

from pathlib import Path

from stop_core.datasets.annotations import (
    class_label,
    find_annotation,
    get_field,
    read_annotations,
    read_entries,
    read_lines,
    require_root,
    safe_name,
)
from stop_core.datasets.clip import Clip, Split, tidied
from stop_core.datasets.listing import Listing
from stop_core.datasets.validation_split import carve_validation
from stop_core.datasets.video_files import VideoFiles

SSV2_VIDEOS = "20bn-something-something-v2"

_LAYOUT = (
    f"{SSV2_VIDEOS}/<id>.webm and labels/ with labels.json, train.json, validation.json, test.json "
    "and test-answers.csv"
)


def read_ssv2(root: Path) -> list[Clip]:
    """Lists the official training, validation and test clips.

    Raises:
        FileNotFoundError: if the root or an annotation file is not there.
        ValueError: if an annotation cannot be read; the message names file and line or entry.
    """
    reader = _Reader(root)
    reader.read("train", "train")
    reader.read("validation", "val")
    reader.read_test()
    return reader.listing.finish()


def read_ssv2_val(root: Path) -> list[Clip]:
    """Like `read_ssv2`, with the official validation clips as test; needs no test answers."""
    reader = _Reader(root)
    reader.read("train", "train")
    reader.read("validation", "test")
    return carve_validation(reader.listing.finish())


class _Reader:
    """The labels, the files and the clips listed so far."""

    def __init__(self, root: Path) -> None:
        require_root(root, _LAYOUT)
        self.root = root
        path = self._annotation("labels")
        # {"Holding something": "0", ...}, in the order of the numbers.
        numbers = read_annotations(path, dict)
        names = sorted(numbers, key=lambda name: (len(str(numbers[name])), str(numbers[name])))
        self.labels = {class_label(name, str(path)): label for label, name in enumerate(names)}
        if len(self.labels) < len(names):
            twice = [name for name in names if tidied(name) != name]
            raise ValueError(f"{path}: {twice[0]!r} is the name of another class too; remove it")
        self.files = VideoFiles(root)
        self.listing = Listing()

    def read(self, name: str, split: Split) -> None:
        """Lists the clips of `train` or `validation`."""
        path = self._annotation(name)
        for where, entry in read_entries(path, read_annotations(path, list)):
            template = get_field(entry, "template", str, where)
            self._add(get_field(entry, "id", str, where), template, split, where)

    def read_test(self) -> None:
        """Lists the test clips, with their classes from the answers, `<id>;<class>` lines."""
        path = find_annotation(self.root, "test-answers.csv", layout=_LAYOUT)
        answers: dict[str, str] = {}
        for where, line in read_lines(path):
            video_id, separator, class_name = line.partition(";")
            if not separator:
                raise ValueError(f"{where}: expected '<id>;<class>', found {line!r}")
            if answers.setdefault(video_id, class_name) != class_name:
                raise ValueError(f"{where}: {video_id} has another class on a line above")
        path = self._annotation("test")
        for where, entry in read_entries(path, read_annotations(path, list)):
            video_id = get_field(entry, "id", str, where)
            if video_id not in answers:
                raise ValueError(f"{where}: test-answers.csv has no line for the video {video_id}")
            self._add(video_id, answers[video_id], "test", where)

    def _add(self, video_id: str, template: str, split: Split, where: str) -> None:
        class_name = tidied(template.replace("[", "").replace("]", ""))
        if class_name not in self.labels:
            raise ValueError(f"{where}: labels.json does not have the class {class_name!r}")
        clip = Clip(
            video_id=safe_name(video_id, where),
            path=self.files.named(video_id) or f"{SSV2_VIDEOS}/{video_id}.webm",
            split=split,
            label=self.labels[class_name],
            class_name=class_name,
            source=video_id,  # the annotation does not say who filmed a clip
        )
        self.listing.add(clip, where)

    def _annotation(self, name: str) -> Path:
        names = (f"{name}.json", f"something-something-v2-{name}.json")
        return find_annotation(self.root, *names, layout=_LAYOUT)
