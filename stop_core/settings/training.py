"""Settings of the optimisation and the augmentation, the same for every method."""

import re
from dataclasses import dataclass
from typing import Literal

Captions = Literal["one", "every"]
Shuffle = Literal["global", "shards"]


@dataclass(frozen=True)
class TrainingOptions:
    """Length, optimizer and augmentation of a training; ValueError if one is out of its range."""

    captions: Captions = "one"
    """Retrieval. one: an epoch shows every clip once, with one of its captions, another one in
    each epoch; every: an epoch shows every clip with each of its captions."""
    steps: int | None = None
    """Optimizer steps of the whole training, instead of `epochs`; validation follows each pass over
    the training clips and the last step."""
    shuffle: Shuffle = "global"
    """Order of the training clips in an epoch. global: all clips are shuffled; shards: the shards
    are, and the clips of many shards at a time, for a cache that is larger than the disk of a
    machine (docs/cache.md)."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean of the gradients."""
    adam_beta2: float = 0.999
    """Decay of AdamW's mean of the squared gradients."""
    adam_eps: float = 1e-8
    """AdamW's addend to the denominator."""
    decay_biases: bool = True
    """Weight decay on all trainable tensors, which includes biases, norms and others of fewer than
    two dimensions."""
    warmup: float | None = None
    """Share of the training that is warm-up, from 0 to 1, instead of `warmup_steps`."""
    flip: bool = False
    """Train on the mirror image of a clip with probability 1/2. Refused for classes that name left
    or right; a clip with such a caption is never mirrored."""
    randaugment: int = 0
    """Random operations on the pixels of a training clip (RandAugment), the same for all of its
    frames; 0: none."""
    randaugment_magnitude: int = 9
    """Strength of these operations, from 0 to 30."""
    label_smoothing: float = 0.0
    """Recognition: probability that the targets spread evenly over all classes."""
    mixup: float = 0.0
    """Recognition: mix each training clip and its label with another clip, with a weight from
    Beta(mixup, mixup); 0: no mixing."""

    def __post_init__(self) -> None:
        infinite = float("inf")
        fraction = "must be at least 0 and below 1"
        # The comparisons are written so that NaN fails them too.
        for name, holds, demand in (
            ("captions", self.captions in ("one", "every"), "must be one or every"),
            ("shuffle", self.shuffle in ("global", "shards"), "must be global or shards"),
            ("steps", self.steps is None or 1 <= self.steps < infinite, "must be at least 1"),
            ("adam_beta1", 0 <= self.adam_beta1 < 1, fraction),
            ("adam_beta2", 0 <= self.adam_beta2 < 1, fraction),
            ("adam_eps", 0 < self.adam_eps < infinite, "must be positive and finite"),
            ("warmup", self.warmup is None or 0 <= self.warmup <= 1, "must be from 0 to 1"),
            ("randaugment", 0 <= self.randaugment <= 14, "must be from 0 to 14"),
            ("randaugment_magnitude", 0 <= self.randaugment_magnitude <= 30, "must be 0 to 30"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, fraction),
            ("mixup", 0 <= self.mixup < infinite, "must be finite and at least 0"),
        ):
            if not holds:
                raise ValueError(f"{name} {demand}, got {getattr(self, name)}")
        if self.mixup and self.shuffle == "shards":
            raise ValueError(
                f"mixup is {self.mixup}, and mixes each clip with one of any shard, but shuffle is "
                "shards; leave one of them out"
            )
        usual = TrainingOptions.randaugment_magnitude
        if self.randaugment == 0 and self.randaugment_magnitude != usual:
            raise ValueError(
                f"randaugment_magnitude is {self.randaugment_magnitude}, but randaugment is 0; set "
                "it to the number of operations, for example 2"
            )


def names_side(words: str) -> bool:
    """Returns whether words name left or right, or a sense of rotation: wrong in a mirror."""
    sides = r"(?<![a-z])(left|right)(wards?|most|hand(ed)?)?(?![a-z])|clockwise"
    return bool(re.search(sides, words.lower()))
