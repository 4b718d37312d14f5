"""Estimates the steps, time and memory of a training before it starts, without a GPU.

Shapes: N tokens of a frame, D channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stop_core.clip.registry import TowerShape
from stop_core.settings.experiment import ExperimentConfig

from ..cluster.resources import Resources

PEAKS = {"A100": 312e12, "H100": 989e12}
"""Dense bfloat16 operations per second, from the data sheets."""
SHARE_OF_PEAK = 0.25
"""Assumed share of the peak, from a roofline model of STOP's step on an H100. Not measured: the
time can be wrong by a factor of two."""
_SAVED_BYTES = 34
"""Saved for the backward pass in bfloat16, per token, block and channel; counted in a simulated
step of ViT-B/32 and of ViT-B/16."""

_TRIED = 1.25
"""Up to this multiple of the GPU's memory, by the estimate, a batch is tried."""


@dataclass(frozen=True)
class Estimate:
    """The approximate cost of one training, with its evaluations."""

    steps: int
    operations: float
    memory: float
    """Bytes on the GPU."""

    def hours(self, gpu: str) -> float:
        """Returns the hours on one of `PEAKS`, if decoded frames arrive in time."""
        return self.operations / (PEAKS[gpu] * SHARE_OF_PEAK) / 3600


def estimate(
    config: ExperimentConfig,
    micro_batch: int | None,
    frames: int,
    clips: Mapping[str, int],
    captions: int = 0,
) -> Estimate:
    """Estimates one training of a method with a frozen tower, in bfloat16.

    Args:
        config: the experiment, with a tower that open_clip lists, or a ValueError is raised.
        micro_batch: clips that are embedded at a time; None for the whole batch.
        frames: cached frames of a clip.
        clips: number of clips by split; some train.
        captions: number of captions of the training clips; 0 if clips have classes.
    """
    shape, used, tokens = _sizes(config, frames)
    sequence = tokens * (used if config.stop.attention == "joint" else 1)
    per_token = 24 * shape.width**2 + 4 * sequence * shape.width  # matrices, and attention
    forward = used * tokens * shape.blocks * per_token
    validated = 0 if config.protocol.full_training else clips["val"]
    trained = clips["train"] + clips["val"] - validated
    every = config.training.captions == "every"
    epoch, steps = config.lengths(captions if every else trained)
    at_once = min(micro_batch or config.batch_size, config.batch_size)
    # Gradient caching embeds every clip twice.
    passes = 4 if captions and at_once < config.batch_size else 3
    evaluated = validated * math.ceil(steps / epoch) + clips["test"]
    weights, clip = _memory(config, frames)
    return Estimate(
        steps,
        forward * (passes * steps * config.batch_size + evaluated),
        weights + clip * at_once,
    )


def refuse_without_memory(config: ExperimentConfig, frames: int, resources: Resources) -> None:
    """Raises ValueError if a GPU cannot hold a batch of STOP; `frames` are those of a cached clip.

    A batch that the estimate finds a little too large is tried: a step that does not fit reports
    the number of clips that do. Other methods store less, and are not refused.
    """
    from stop_core.clip.loading import tower_shape

    card = resources.gpu_bytes * resources.gpus_per_worker
    is_stored = config.method == "stop" and not resources.checkpoint_activations
    if not card or not is_stored or tower_shape(config.tower) is None:
        return
    share = math.ceil(config.batch_size / resources.workers)
    at_once = min(resources.micro_batch or share, share)
    weights, clip = _memory(config, frames)
    if weights + at_once * clip <= _TRIED * card:
        return
    fits = int((card - weights) / clip)
    advice = f"give --micro-batch {fits} for the same result, or " if fits > 0 else ""
    bf16 = "" if config.precision == "bf16" else " or --precision bf16"
    raise ValueError(
        f"{at_once} clips at once need about {(weights + at_once * clip) / 2**30:.0f} GiB, and a "
        f"worker has {card / 2**30:.0f} GiB of its GPU: {advice}use --checkpoint-activations True"
        f"{bf16}"
    )


def _sizes(config: ExperimentConfig, frames: int) -> tuple[TowerShape, int, int]:
    """Returns the tower's shape, the frames of a clip that are used, and the tokens of a frame."""
    shape = listed_shape(config.tower)
    return shape, config.frames or frames, 1 + shape.patches + config.stop.max_prompts


def _memory(config: ExperimentConfig, frames: int) -> tuple[float, float]:
    """Returns the bytes of the weights, and those that a step stores for each clip."""
    shape, used, tokens = _sizes(config, frames)
    saved = _SAVED_BYTES * (2 if config.precision == "fp32" else 1)
    weights = 8 * 12 * shape.width**2 * shape.blocks  # both towers, in float32
    return weights, saved * used * tokens * shape.blocks * shape.width


def listed_shape(tower: str) -> TowerShape:
    """Returns the shape of a vision tower; raises ValueError if open_clip does not list it."""
    from stop_core.clip.loading import tower_shape

    shape = tower_shape(tower)
    if shape is None or shape.unfit:
        raise ValueError(
            f"the shape of {tower} is not known before it is loaded; choose a tower "
            "that open_clip lists"
        )
    return shape
