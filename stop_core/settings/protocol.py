"""The protocol of a training: which of the cached clips and classes it is trained on."""

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stop_core.storage.documents import read_text

_LISTS = (".txt", ".csv")


@dataclass(frozen=True)
class ProtocolConfig:
    """Few-shot, base-to-novel and full training; the default is fully supervised."""

    shots: int | None = None
    """Few-shot: train on this many clips of each class, drawn by the seed of the training. A draw
    contains all smaller draws (default: all clips). Validation stays whole."""
    shots_list: tuple[str, ...] = ()
    """Few-shot: train on the videos of a published list: a .txt or .csv file with one video per
    line, and its label after it or not; or the videos themselves."""
    classes: Literal["all", "base"] = "all"
    """base: base-to-novel. Train and validate on the base classes; test on them, and on the other
    classes among each other."""
    base_seed: int | None = None
    """Draw the base classes with this seed (default: the first half, in the order of the
    cache)."""
    base_classes: tuple[str, ...] = ()
    """The base classes: a .txt file with one per line, a .csv file with a column `name`, or the
    classes themselves (default: half of the classes)."""
    full_training: bool = False
    """Train on the validation clips too. The number of epochs is fixed beforehand, and the last
    epoch is tested."""

    def __post_init__(self) -> None:
        for name, least in (("shots", 1), ("base_seed", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.classes not in ("all", "base"):
            raise ValueError(f"classes must be all or base, got {self.classes}")
        for one, other in (("shots", "shots_list"), ("base_seed", "base_classes")):
            if getattr(self, one) is not None and getattr(self, other):
                raise ValueError(f"{one} and {other} choose the same; leave one of them out")
        for name in ("base_seed", "base_classes"):
            if self.classes == "all" and getattr(self, name) not in (None, ()):
                raise ValueError(f"{name} needs classes to be base; set it, or leave {name} out")

    def __str__(self) -> str:
        """Returns the protocol in words, for tables; empty for the fully supervised one."""
        parts = []
        if self.shots is not None:
            parts.append(f"{self.shots} clips of each class")
        if self.shots_list:
            parts.append(f"a list of {len(self.shots_list)} training clips")
        if self.classes == "base":
            named = f"{len(self.base_classes)} listed" if self.base_classes else "the first half"
            drawn = f"drawn with seed {self.base_seed}"
            parts.append(f"base classes: {named if self.base_seed is None else drawn}")
        if self.full_training:
            parts.append("training and validation clips, the last of a fixed number of epochs")
        return "; ".join(parts)

    def with_lists(self) -> "ProtocolConfig":
        """Returns a copy in which the names of files are replaced by their entries."""
        listed, base = _entries(self.shots_list, r"\s+-?\d+$"), _entries(self.base_classes, r"$")
        return replace(self, shots_list=listed, base_classes=base)


def _entries(given: tuple[str, ...], label: str) -> tuple[str, ...]:
    """Returns the lines of a list without their labels; other texts unchanged."""
    if len(given) != 1 or not given[0].endswith(_LISTS):
        return given
    try:
        lines = [line.strip() for line in read_text(Path(given[0])).splitlines() if line.strip()]
    except OSError as problem:
        raise OSError(f"the list {given[0]} cannot be read ({problem.strerror})") from problem
    if lines and "name" in lines[0].split(","):
        return tuple(row["name"].strip() for row in csv.DictReader(lines))
    if not lines:
        raise ValueError(f"the list {given[0]} is empty; give a file with one entry per line")
    return tuple(re.sub(label, "", line) for line in lines)
