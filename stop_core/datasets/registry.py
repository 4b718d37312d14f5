"""The datasets by name: how each is read, and its defaults."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stop_core.datasets import hmdb51
from stop_core.datasets.clip import SPLITS, Clip, Split, Task

MOTION_TRAIN = 2560
MOTION_TEST = 768
MOTION_SEED = 0
CAPTIONED_TRAIN = 1920


@dataclass(frozen=True)
class Dataset:
    """What is needed to read one dataset, and what to assume where a user says nothing."""

    name: str
    read: Callable[[Path, int], list[Clip]]
    """Lists the clips of a fold below a data root; raises OSError or ValueError."""
    folds: int
    """Folds are numbered from 1."""
    frames: int
    size: int
    """Default edge of a cached frame, in pixels."""
    template: str
    """The sentence of a class, `{}` standing for its words."""
    task: Task = "recognition"
    """What its clips are labelled for: with classes, or with captions."""
    generate: Callable[[Path], None] | None = None
    """Makes the dataset below a data root that does not exist; None where it must be fetched."""

    def prompt(self, class_words: str) -> str:
        """Returns the sentence that describes a class, given the words of its name."""
        return self.template.format(class_words)


def _generate_motion(root: Path) -> None:
    from stop_core.tiny.motion import write_motion_dataset  # it needs PyAV; others do not

    write_motion_dataset(root, train=MOTION_TRAIN, test=MOTION_TEST, seed=MOTION_SEED)


def _generate_motion_captions(root: Path) -> None:
    from stop_core.tiny.motion_captions import write_captioned_motion

    write_captioned_motion(root, train=CAPTIONED_TRAIN, seed=MOTION_SEED)


def _read_motion_captions(root: Path, fold: int) -> list[Clip]:
    from stop_core.tiny.motion_captions import read_captioned_motion

    return read_captioned_motion(root, fold)


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="hmdb51",
            read=hmdb51.read_hmdb51,
            folds=hmdb51.FOLDS,
            frames=12,
            size=224,
            template="a video of a person doing {}.",
        ),
        Dataset(
            name="motion",
            read=hmdb51.read_hmdb51,
            folds=1,
            frames=6,
            size=32,
            template="a video of a {}",
            generate=_generate_motion,
        ),
        Dataset(
            name="motion-captions",
            read=_read_motion_captions,
            folds=1,
            frames=6,
            size=32,
            template="",
            task="retrieval",
            generate=_generate_motion_captions,
        ),
    )
}


def get_dataset(name: str) -> Dataset:
    """Returns a dataset by name; ValueError with the known names otherwise."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


@dataclass(frozen=True)
class Selection:
    """The part of a dataset that a user chose, with labels of its own from 0."""

    clips: tuple[Clip, ...]
    class_names: tuple[str, ...]
    """By label; every chosen class, whether or not a clip of it is left."""
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    """The classes asked for, sorted; empty for all."""
    limit: int | None


def select_clips(
    clips: Sequence[Clip],
    splits: Collection[Split] = SPLITS,
    classes: Collection[str] = (),
    limit: int | None = None,
) -> Selection:
    """Narrows a dataset down; which split a clip belongs to never changes by it.

    Args:
        clips: the clips of a whole fold.
        splits: the splits to keep.
        classes: the classes to keep, all where empty. Labels are numbered anew.
        limit: at most so many clips of each split, taken evenly from the classes.

    Raises:
        ValueError: if a class is not one of the dataset's.
    """
    known = sorted({clip.label: clip.class_name for clip in clips}.items())
    names = [name for label, name in known if label >= 0]
    if unknown := sorted(set(classes) - set(names)):
        raise ValueError(
            f"--classes: there is no class {', '.join(unknown)}; there are {', '.join(names)}"
        )
    kept = [name for name in names if not classes or name in classes]
    labels = {name: label for label, name in enumerate(kept)}
    if not names:  # a set for retrieval
        labels = {"": -1}
    chosen = [
        replace(clip, label=labels[clip.class_name])
        for clip in clips
        if clip.split in splits and clip.class_name in labels
    ]
    return Selection(
        clips=tuple(chosen if limit is None else _first_of_every_class(chosen, limit)),
        class_names=tuple(kept),
        splits=tuple(split for split in SPLITS if split in splits),
        classes=tuple(sorted(set(classes))),
        limit=limit,
    )


def _first_of_every_class(clips: list[Clip], limit: int) -> list[Clip]:
    """Takes `limit` clips of each split: the first of every class, then the second, and so on."""
    seen: dict[tuple[Split, int], int] = defaultdict(int)
    ranked: dict[Split, list[tuple[int, int]]] = defaultdict(list)
    for position, clip in enumerate(clips):
        ranked[clip.split].append((seen[clip.split, clip.label], position))
        seen[clip.split, clip.label] += 1
    kept = sorted(position for ranks in ranked.values() for _, position in sorted(ranks)[:limit])
    return [clips[position] for position in kept]
