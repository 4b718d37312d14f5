"""A validation split where a dataset has none: whole source videos taken out of training.

Clips cut from one film look alike. If some were in training and others in validation, validation
would measure memorisation. So sources move, never single clips, and a source that
appears in several classes moves in all of them. The clips of a retrieval dataset have no class:
they count as one, with the label that says so.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from stop_core.datasets.clip import Clip

FRACTION = 0.1
SEED = 0


def with_validation(clips: Sequence[Clip]) -> list[Clip]:
    """Carves validation from training, unless there is a clip for validation."""
    has_val = any(clip.split == "val" for clip in clips)
    return list(clips) if has_val else carve_validation(clips)


def carve_validation(
    clips: Sequence[Clip], fraction: float = FRACTION, seed: int = SEED
) -> list[Clip]:
    """Moves about `fraction` of the training clips of every class to validation, by source.

    The laws: no source has clips in both; no class loses all of its training clips; every class
    with a source that can be spared gets at least one validation clip. The result depends only on
    the listed clips and the seed: not on their order, nor on which files exist. The clips returned
    are in the same order, the chosen ones with the split "val".
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    carve = _Carve((clip for clip in clips if clip.split == "train"), fraction, seed)
    # Classes with few sources first: they have the least choice. One source for every class
    # before any class is filled up, so that a full class cannot take another's only chance.
    for label in sorted(carve.sources_of, key=lambda c: (len(carve.sources_of[c]), c)):
        carve.give_one_source(label)
    for label in sorted(carve.sources_of):
        carve.fill(label)
    return [
        replace(clip, split="val")
        if clip.split == "train" and clip.source in carve.chosen
        else clip
        for clip in clips
    ]


class _Carve:
    """The state of one carve: which sources have been chosen, and what each class has left."""

    def __init__(self, training: Iterable[Clip], fraction: float, seed: int) -> None:
        # source -> its training clips by class; class -> its sources, in the seed's order
        self.clips_of: dict[str, Counter[int]] = defaultdict(Counter)
        self.sources_of: dict[int, list[str]] = defaultdict(list)
        self.left, self.moved = Counter[int](), Counter[int]()
        self.chosen: set[str] = set()
        for clip in training:
            self.clips_of[clip.source][clip.label] += 1
            self.left[clip.label] += 1
        # A hash, not random.shuffle: adding or removing one source leaves the order of the others.
        for source in sorted(
            self.clips_of, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
        ):
            for label in self.clips_of[source]:
                self.sources_of[label].append(source)
        self.target = {label: max(1, round(fraction * n)) for label, n in self.left.items()}

    def give_one_source(self, label: int) -> None:
        """Moves one source of a class that has none yet, a small one where there is one."""
        if self.moved[label]:
            return
        spare = [source for source in self.sources_of[label] if self._can_be_spared(source)]
        if spare:
            # min keeps the first of equals, so the seed decides among the sources that fit.
            self._move(min(spare, key=self._overshoot))

    def fill(self, label: int) -> None:
        """Moves further sources of a class while none of their classes goes over its target."""
        for source in self.sources_of[label]:
            fits = self._can_be_spared(source) and self._overshoot(source) == 0
            if source not in self.chosen and fits:
                self._move(source)

    def _overshoot(self, source: str) -> int:
        counts = self.clips_of[source].items()
        return sum(max(0, self.moved[label] + n - self.target[label]) for label, n in counts)

    def _can_be_spared(self, source: str) -> bool:
        return all(self.left[label] > n for label, n in self.clips_of[source].items())

    def _move(self, source: str) -> None:
        self.chosen.add(source)
        self.left.subtract(self.clips_of[source])
        self.moved.update(self.clips_of[source])
