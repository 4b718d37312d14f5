"""Random changes of the pixels and labels of training clips.

All of them work on uint8 pixels and draw from a generator with a seed given by the caller, not from
PyTorch's: clips are read in a thread next to the one that draws dropout masks.

Shapes: T frames of a clip, S edge of the square frames.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions

# Last part of a seed: the draws of different purposes are independent of each other.
_PIXELS, _MIXING = 1, 2

_Operation = Callable[[Tensor, int], Tensor]


def augment(
    frames_TSS3: Tensor, options: TrainingOptions, seed: tuple[int, ...], *, may_flip: bool
) -> Tensor:
    """Returns a flipped and recoloured clip, uint8: the same change in all of its frames."""
    random = np.random.default_rng((*seed, _PIXELS))
    is_flipped = random.random() < 0.5
    if options.flip and may_flip and is_flipped:
        frames_TSS3 = frames_TSS3.flip(2)
    if not options.randaugment:
        return frames_TSS3
    frames_T3SS = frames_TSS3.permute(0, 3, 1, 2)
    operations = _operations(options.randaugment_magnitude / 30, frames_TSS3.shape[2])
    for number in random.integers(len(operations), size=options.randaugment):
        frames_T3SS = operations[number](frames_T3SS, 1 if random.random() < 0.5 else -1)
    return frames_T3SS.permute(0, 2, 3, 1)


def _operations(strength: float, edge: int) -> tuple[_Operation, ...]:
    """Returns the operations of RandAugment (Cubuk et al., NeurIPS 2020) at a strength up to 1."""
    # Those of torchvision's `RandAugment`, which takes no generator; 1 and -1 are their directions.

    def shear(x: float, y: float) -> _Operation:
        return lambda f, sign: F.affine(f, 0, [0, 0], 1.0, [sign * x, sign * y], center=[0, 0])

    def shift(x: int, y: int) -> _Operation:
        return lambda f, sign: F.affine(f, 0, [sign * x, sign * y], 1.0, [0, 0])

    tilt, pixels = math.degrees(math.atan(0.3 * strength)), int(150 / 331 * edge * strength)
    change = 0.9 * strength
    return (
        lambda f, sign: f,
        shear(tilt, 0),
        shear(0, tilt),
        shift(pixels, 0),
        shift(0, pixels),
        lambda f, sign: F.rotate(f, sign * 30 * strength),
        lambda f, sign: F.adjust_brightness(f, 1 + sign * change),
        lambda f, sign: F.adjust_saturation(f, 1 + sign * change),
        lambda f, sign: F.adjust_contrast(f, 1 + sign * change),
        lambda f, sign: F.adjust_sharpness(f, 1 + sign * change),
        lambda f, sign: F.posterize(f, 8 - round(4 * strength)),
        lambda f, sign: F.solarize(f, 255 * (1 - strength)),
        lambda f, sign: F.autocontrast(f),
        lambda f, sign: F.equalize(f),
    )


def mixing(example: int, examples: int, config: ExperimentConfig, epoch: int) -> tuple[int, float]:
    """Returns the partner of an example in an epoch, and the weight of the example (mixup).

    The partner is any example of the training split, not one of the batch, so that neither depends
    on the batch, its parts or the number of processes (Zhang et al., ICLR 2018, do the same).
    """
    random = np.random.default_rng((config.seed, epoch, example, _MIXING))
    alpha = config.training.mixup
    return int(random.integers(examples)), float(random.beta(alpha, alpha))


def mix(frames: Tensor, partner: Tensor, weight: float) -> Tensor:
    """Returns the weighted mean of the pixels of two clips, rounded to uint8."""
    return torch.lerp(partner.float(), frames.float(), weight).round().to(torch.uint8)
