"""One video of a dataset, as its annotation lists it."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

import regex

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Task = Literal["recognition", "retrieval"]
NO_LABEL = -1
"""The label of a clip of a retrieval dataset."""
_INVISIBLE = regex.compile(r"(?!\s)[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}]+")


@dataclass(frozen=True)
class Clip:
    """A listed video. Its file may be missing or corrupted."""

    video_id: str
    """Unique within the dataset, for example `<class>/<stem of the file>`."""
    path: str
    """Path of the file relative to the data root, with forward slashes."""
    split: Split
    label: int
    """Index into the dataset's class names; `NO_LABEL` in a retrieval dataset."""
    class_name: str
    """Empty in a retrieval dataset."""
    source: str
    """The longer video that this clip was cut from; clips of one source stay in one split."""
    captions: tuple[str, ...] = ()
    """Sentences that describe the clip, in the annotation's order; never empty for retrieval."""


def tidied(text: str) -> str:
    """Returns a text in Unicode's form NFC, without invisible characters, with single blanks."""
    if not (text.isascii() and text.isprintable()):  # the common case, checked ten times as fast
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return " ".join(text.split())


def class_words(class_name: str) -> str:
    """Returns a class name as English words: `ApplyEyeMakeup` becomes `apply eye makeup`."""
    words = tidied(re.sub(r"[\[\]]", "", class_name).replace("_", " "))
    if " " not in words:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)
        # Only in CamelCase names; an abbreviation is not changed.
        words = words.lower() if re.search(r"[a-z]", words) else words
    elif re.match(r"[A-Z][a-z]", words):
        words = words[0].lower() + words[1:]
    return words
