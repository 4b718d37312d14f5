"""Builds a method of the comparison table by its name."""

from dataclasses import replace

from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.clip.pretrained import RANDOM
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS


def build_method(config: ExperimentConfig, clip: FrozenClip, classes: int) -> VideoModel:
    """Builds the method that `config` names on a loaded CLIP, for `classes` classes.

    Raises:
        ValueError: if the tower is unsupported, or the settings do not fit it.
    """
    model: VideoModel = METHODS[config.method].load().build(clip, config, classes)
    if config.context_tokens:
        model.learn_context(config.context_tokens)
    return model


def matched_static_prompts(config: ExperimentConfig) -> int:
    """Returns the number of deep static prompts with about as many trainable parameters as STOP.

    Builds both on the tower of `config` with random weights, which needs no download.
    """
    clip = load_clip(config.tower, RANDOM)
    stop, one = (
        build_method(replace(config, method=method, static_prompts=1, context_tokens=0), clip, 1)
        for method in ("stop", "vpt-deep")
    )
    count, each = (sum(p.numel() for p in model.trainable().values()) for model in (stop, one))
    return max(1, round(count / each))
