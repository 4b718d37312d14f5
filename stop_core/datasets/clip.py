"""One video of a dataset, as its annotation lists it."""

from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Task = Literal["recognition", "retrieval"]


@dataclass(frozen=True)
class Clip:
    """A listed video. That it is listed does not say that its file is there, or decodes."""

    video_id: str
    """Unique within the dataset, for example `<class>/<stem of the file>`."""
    path: str
    """Where the file lies, relative to the data root, with forward slashes."""
    split: Split
    label: int
    """Index into the dataset's class names; -1 in a set for retrieval, which has none."""
    class_name: str
    source: str
    """The longer video that this clip was cut from; clips of one source stay in one split."""
    captions: tuple[str, ...] = ()
    """Sentences that describe the clip; empty where the dataset has none."""


def class_words(class_name: str) -> str:
    """Returns a class name as English words: `brush_hair` becomes `brush hair`."""
    return class_name.replace("_", " ")
