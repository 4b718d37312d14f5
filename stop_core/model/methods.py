"""Builds a method of the comparison table by its name."""

from dataclasses import replace

from stop_core.clip.loading import FrozenClip, check_name, load_clip, tower_shape
from stop_core.clip.pretrained import RANDOM
from stop_core.clip.tower import UNFIT_ADVICE
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS


def build_method(config: ExperimentConfig, clip: FrozenClip, classes: int) -> VideoModel:
    """Builds the method that `config` names; ValueError if the settings do not fit the tower."""
    model: VideoModel = METHODS[config.method].load().build(clip, config, classes)
    if config.context_tokens:
        model.learn_context(config.context_tokens)
    return model


def check_tower(config: ExperimentConfig) -> None:
    """Raises, as `check_name`, for a tower that the method cannot use, before a download."""
    shape = tower_shape(config.tower)
    if shape and shape.unfit and not METHODS[config.method].load().any_tower:
        raise ValueError(
            f"the tower {config.tower} {shape.unfit}, and {config.method} works inside of that; "
            f"{UNFIT_ADVICE}, or a method that takes any tower: zero-shot, linear-probe, "
            "clip4clip, clip4clip-seqtransf or vifi-clip"
        )
    check_name(config.tower, config.pretrained)


def matched_static_prompts(config: ExperimentConfig) -> int:
    """Returns the number of deep static prompts with about as many trainable parameters as STOP."""
    clip = load_clip(config.tower, RANDOM)  # needs no download
    stop, one = (
        build_method(replace(config, method=method, static_prompts=1, context_tokens=0), clip, 1)
        for method in ("stop", "vpt-deep")
    )
    count, each = (sum(p.numel() for p in model.trainable().values()) for model in (stop, one))
    return max(1, round(count / each))
