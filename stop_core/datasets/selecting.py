"""The part of a dataset that a user chose."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from stop_core.datasets.clip import NO_LABEL, SPLITS, Clip, Split, tidied


@dataclass(frozen=True)
class Selection:
    """The part of a dataset that a user chose, with labels renumbered from 0."""

    clips: tuple[Clip, ...]
    class_names: tuple[str, ...]
    """By label; every chosen class, even without clips. Empty for retrieval."""
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
    """Selects clips of a whole fold, by split and class (default: all), with labels renumbered.

    At most `limit` clips of a split are taken, evenly from the classes. Raises ValueError for an
    unknown class, or for classes of a dataset without any.
    """
    known = {clip.label: clip.class_name for clip in clips if clip.label != NO_LABEL}
    names = [name for _, name in sorted(known.items())]
    classes = {tidied(name) for name in classes}
    if classes and not names:
        raise ValueError("--classes: the clips of this dataset have captions and no classes")
    if unknown := sorted(classes - set(names)):
        raise ValueError(
            f"--classes: there is no class {', '.join(unknown)}; there are {', '.join(names)}"
        )
    kept = [name for name in names if not classes or name in classes]
    labels = {name: label for label, name in enumerate(kept)}
    chosen = [
        replace(clip, label=labels.get(clip.class_name, NO_LABEL))
        for clip in clips
        if clip.split in splits and (clip.label == NO_LABEL or clip.class_name in labels)
    ]
    return Selection(
        clips=tuple(chosen if limit is None else _first_of_every_class(chosen, limit)),
        class_names=tuple(kept),
        splits=tuple(split for split in SPLITS if split in splits),
        classes=tuple(sorted(classes)),
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
