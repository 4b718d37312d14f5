"""Prepares the model of a training worker: on its device, with less memory, or compiled."""

import os
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.model.methods import build_method
from stop_core.model.prompted import PromptedModel
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import autocast, within_memory
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.private import first_line, private_folder

from ..cli.console import RunError
from .task import WorkerTask

_MOST_GRAPHS = 64
"""Graphs that torch keeps for one function; beyond them it runs new shapes without compilation. Its
default of 8 is too few for a process that runs many trials of a sweep."""


_MOST_DIFFERENCE = 0.5
"""Relative difference of two gradients. Rounding, which can change a selection, makes < 0.02."""


def prepare_model(
    task: WorkerTask, clip: FrozenClip, classes: int, device: torch.device
) -> VideoModel:
    """Builds the task's method around a CLIP; ValueError if an option has no effect on it."""
    model = build_method(task.config, clip, classes).to(device)
    options, method = task.resources, task.config.method
    if options.checkpoint_activations:
        if not isinstance(model, PromptedModel):
            raise ValueError(f"checkpoint_activations has no effect on {method}; leave it out")
        model.checkpoint_activations = True
    if options.compile == "on" and model.not_compiled:
        raise ValueError(f"{method} cannot be compiled: {model.not_compiled}; give --compile off")
    return model


def compile_training(
    model: VideoModel,
    config: ExperimentConfig,
    shape: Sequence[int],
    *,
    required: bool,
    report: Callable[[str], None],
) -> bool:
    """Compiles the encoder for training batches of frames of one shape, [B, T, H, W, 3].

    Batches of another size (the last one of an epoch) and evaluations run without compilation: so
    one graph is compiled, and the metrics are those of the commands that evaluate a trained model.

    The weights and statistics of the model do not change. `report` gets lines for the user, before
    and after the compilation. Returns whether the model is compiled; if it is `required`, and fails
    or gives another gradient, a RunError is raised.
    """
    from torch._dynamo import config as dynamo  # these take a second to import
    from torch._inductor import config as inductor

    # torch runs the code in this folder. Its default is one that another user can create first.
    private = str(private_folder() / "torchinductor")
    folder = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", private)
    report(f"compiling the model: minutes, or seconds if {folder} has it from another training")
    inductor.cpp_cache_precompile_headers = False  # it would not put them there
    dynamo.recompile_limit = _MOST_GRAPHS
    eager, device = model.encode_video, model.logit_scale.device
    compiled = torch.compile(eager)
    chance = torch.Generator().manual_seed(0)  # not the training's
    frames = torch.randint(256, tuple(shape), generator=chance, dtype=torch.uint8).to(device)

    def gradient(encode: Callable[[Tensor], Tensor]) -> Tensor:
        model.zero_grad(set_to_none=True)
        with autocast(config, device):
            encode(frames).sum().backward()
        found = (one.grad for one in model.parameters())
        return torch.cat([one.flatten().float() for one in found if one is not None])

    def one_step() -> None:
        # First without compilation, which folds the frozen weights before the compiler sees them.
        first, second = gradient(eager), gradient(eager)
        own = gradient(compiled)
        is_random = not torch.allclose(first, second, rtol=1e-3)  # dropout: nothing to compare with
        if not is_random and (own - first).norm() > _MOST_DIFFERENCE * first.norm():
            raise RuntimeError("its gradient differs from the one without compilation")

    model.train()
    started = time.monotonic()
    try:
        within_memory(one_step)  # the first training step reports a batch that is too large
    except Exception as problem:  # compilers raise many types
        reason = f"the model cannot be compiled ({first_line(problem)})"
        if required:
            raise RunError(f"{reason}; give --compile off") from problem
        report(f"note: {reason}; it is trained without compilation")
        return False
    finally:
        model.zero_grad(set_to_none=True)
        model.end_step(lambda sums, device: [0.0] * len(sums))  # discards the statistics
    report(f"compiled the model in {time.monotonic() - started:.0f} s")

    def encode(frames: Tensor) -> Tensor:
        is_compiled = model.training and frames.shape == tuple(shape)
        return compiled(frames) if is_compiled else eager(frames)

    model.encode_video = encode  # type: ignore[method-assign]
    return True
