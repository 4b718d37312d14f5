"""Prepares the model of a training worker: on its device, with less memory, or compiled."""

import os

import torch

from stop_core.clip.loading import FrozenClip
from stop_core.model.baselines import LinearProbe
from stop_core.model.methods import build_method
from stop_core.model.prompted import PromptedModel
from stop_core.model.video_model import VideoModel
from stop_core.storage.private import private_folder

from .task import WorkerTask


def prepare_model(
    task: WorkerTask, clip: FrozenClip, classes: int, device: torch.device
) -> VideoModel:
    """Builds the task's method around a CLIP, with the task's memory options.

    Raises:
        ValueError: if `checkpoint_activations` is set for a method that has none to checkpoint.
    """
    model = build_method(task.config, clip, classes).to(device)
    if task.resources.checkpoint_activations:
        if not isinstance(model, PromptedModel):
            raise ValueError(
                f"checkpoint_activations has no effect on {task.config.method}; leave it out"
            )
        model.checkpoint_activations = True
    return model


def compile_encoder(
    model: VideoModel, method: str, shape: tuple[int, ...], device: torch.device
) -> None:
    """Compiles the encoder of videos with frames [T, H, W, 3].

    Raises:
        ValueError: if the method has nothing to compile.
    """
    if isinstance(model, LinearProbe):
        raise ValueError(f"compile has no effect on {method}; leave it out")
    frames = torch.zeros(1, *shape, dtype=torch.uint8, device=device)
    with torch.no_grad():  # folds the frozen weights before the compiler sees them
        model.encode_video(frames)
    # torch runs the code in this folder. Its default is one that another user can create first.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder() / "torchinductor"))
    model.encode_video = torch.compile(model.encode_video)  # type: ignore[method-assign]
