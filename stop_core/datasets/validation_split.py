"""A validation split where a dataset has none: whole source videos taken out of training.

Clips cut from one film look alike. If some were in training and others in validation, validation
would measure memorisation. So sources move, never single clips, and a source that
appears in several classes moves in all of them. The clips of a retrieval dataset have no class:
they count as one, with the label that says so.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
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
    # source -> its training clips by class; class -> its sources, in the seed's order
    clips_of: dict[str, Counter[int]] = defaultdict(Counter)
    sources_of: dict[int, list[str]] = defaultdict(list)
    left, moved, chosen = Counter[int](), Counter[int](), set[str]()
    for clip in clips:
        if clip.split == "train":
            clips_of[clip.source][clip.label] += 1
            left[clip.label] += 1
    # A hash, not random.shuffle: adding or removing one source leaves the order of the others.
    for source in sorted(
        clips_of, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
    ):
        for label in clips_of[source]:
            sources_of[label].append(source)
    target = {label: max(1, round(fraction * n)) for label, n in left.items()}

    def can_be_spared(source: str) -> bool:
        return all(left[label] > n for label, n in clips_of[source].items())

    def overshoot(source: str) -> int:
        counts = clips_of[source].items()
        return sum(max(0, moved[label] + n - target[label]) for label, n in counts)

    def move(source: str) -> None:
        chosen.add(source)
        left.subtract(clips_of[source])
        moved.update(clips_of[source])

    # Classes with few sources first: they have the least choice. One source for every class
    # before any class is filled up, so that a full class cannot take another's only chance.
    for label in sorted(sources_of, key=lambda c: (len(sources_of[c]), c)):
        spare = [source for source in sources_of[label] if can_be_spared(source)]
        if spare and not moved[label]:
            # min keeps the first of equals, so the seed decides among the sources that fit.
            move(min(spare, key=overshoot))
    for label in sorted(sources_of):
        for source in sources_of[label]:
            fits = can_be_spared(source) and overshoot(source) == 0
            if source not in chosen and fits:
                move(source)
    return [
        replace(clip, split="val") if clip.split == "train" and clip.source in chosen else clip
        for clip in clips
    ]
