"""Checks that a device computes what the CPU computes: outputs, gradients, a training, a resume.

Everything runs on the tiny tower and on clips of noise, and takes seconds.

Shapes: B clips, T frames.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stop_core import StopConfig, build_model
from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.model.stop import StopModel
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import autocast, seed_weights
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import Attention
from stop_core.settings.training import TrainingOptions
from stop_core.training.objectives import Recognition
from stop_core.training.trainer import Trainer

Row = tuple[str, str, str]
"""The comparison, its result, and "ok", "DIFFERS", or an empty text if there is no limit."""
CLASSES = [["a red shape"], ["a green shape"], ["a blue shape"]]
CONFIG = ExperimentConfig(
    stop=StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4),
    epochs=1,
    batch_size=4,
    warmup_steps=0,
    static_prompts=2,
    training=TrainingOptions(adam_eps=1e-3),  # Adam amplifies the rounding of tiny gradients
)
_CLOSE = 2e-3  # relative to the largest number
_CLOSE_BF16 = 5e-2


class NoiseClips:
    """Clips of noise in memory, with the interface of a cache."""

    def __init__(self, count: int, frames: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = (frames, size, size, 3)
        self.frames = torch.randint(
            256, (count, *self.shape), generator=generator, dtype=torch.uint8
        )
        self.labels = torch.arange(count) % len(CLASSES)
        self.source = None
        self.shards = [f"train-{number // 4:05d}" for number in range(count)]
        self.video_ids = [f"clip {number}" for number in range(count)]
        self.captions: list[tuple[str, ...]] = [("a shape",)] * count

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        """Returns the frames of these clips: `out`, if it is given."""
        return torch.index_select(self.frames, 0, torch.tensor(list(indices)), out=out)


def check_device(device: str, tower: str, *, compiled: bool) -> Iterator[Row]:
    """Yields one row per check.

    Args:
        device: cuda or cpu.
        tower: whose attention is looked at, with random weights.
        compiled: whether to compare torch.compile with eager, too.
    """
    clips = NoiseClips(12, 4, 32)
    for method in METHODS:
        config = replace(CONFIG, method=method)
        yield from _compare_method(config, clips, device)
    yield _trace(clips, device)
    yield _resume(clips, device)
    if compiled:
        yield _compile(clips, device)
    kinds: tuple[Attention, ...] = ("joint", "frame")
    for attention in kinds:
        kernel = _kernel(device, tower, attention)
        yield f"kernel of attention in prompted blocks of {tower}, {attention}", kernel, ""


def _compare_method(config: ExperimentConfig, clips: NoiseClips, device: str) -> Iterator[Row]:
    expected, found = (_outputs(config, clips, where) for where in ("cpu", device))
    bf16 = _outputs(replace(config, precision="bf16"), clips, device)
    name = config.method
    for what, number, limit in (("logits", 0, _CLOSE), ("gradients", 1, _CLOSE)):
        if expected[number].numel():
            yield _row(f"{name}: {what}", found[number], expected[number], limit)
    yield _row(f"{name}: logits in bf16", bf16[0], expected[0], _CLOSE_BF16)
    if expected[1].numel():
        losses = [torch.tensor(_losses(_trainer(config, clips, w))) for w in ("cpu", device)]
        yield _row(f"{name}: losses of an epoch", losses[1], losses[0], _CLOSE)


def _model(config: ExperimentConfig, device: str) -> VideoModel:
    seed_weights(config.seed)
    clip: FrozenClip = load_clip("tiny")
    return build_method(config, clip, len(CLASSES)).to(device)


def _outputs(config: ExperimentConfig, clips: NoiseClips, device: str) -> tuple[Tensor, Tensor]:
    """Returns the logits of a batch, and all gradients in one row; on the CPU."""
    model = _model(config, device)
    frames = clips.frames[:4].to(device)
    with autocast(config, frames.device):
        logits = model(frames, ClassTexts(model, CLASSES).embeddings()).float()
    parameters = list(model.trainable().values())
    if parameters:
        F.cross_entropy(logits, clips.labels[:4].to(device)).backward()
    gradients = [p.grad.flatten().cpu() for p in parameters if p.grad is not None]
    return logits.detach().cpu(), torch.cat(gradients) if gradients else torch.empty(0)


def _trainer(config: ExperimentConfig, clips: NoiseClips, device: str) -> Trainer:
    model = _model(config, device)
    objective = Recognition(model, config, clips, ClassTexts(model, CLASSES))
    return Trainer(model, config, clips, objective)


def _losses(trainer: Trainer, first: int = 0) -> list[float]:
    return [step.loss for step in trainer.steps(first)]


def _trace(clips: NoiseClips, device: str) -> Row:
    """Compares the symbols of the paper in every block."""
    worst, same = 0.0, []
    models = [_model(CONFIG, where).eval() for where in ("cpu", device)]
    traces = []
    for model in models:
        assert isinstance(model, StopModel)
        with torch.no_grad():
            traces.append(model.trace(clips.frames[:4].to(model.logit_scale.device)))
    for expected, found in zip(*traces, strict=True):
        for symbol in ("A", "M", "W_s", "W_t"):
            worst = max(worst, _difference(getattr(found, symbol), getattr(expected, symbol)))
        same.append((found.r.cpu() == expected.r).float().mean())
    result = f"A, M, W^s, W^t {worst:.1e}; regions equal in {torch.stack(same).mean():.2%}"
    return "stop: symbols of all blocks", result, "ok" if worst <= _CLOSE else "DIFFERS"


def _resume(clips: NoiseClips, device: str) -> Row:
    whole, first, second = (_trainer(CONFIG, clips, device) for _ in range(3))
    _losses(whole)
    steps = first.steps(0)
    next(steps)
    steps.close()
    second.model.load_prompt_state_dict(
        {name: tensor.clone() for name, tensor in first.model.prompt_state_dict().items()}
    )
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    _losses(second, 1)
    pairs = zip(whole.model.trainable().values(), second.model.trainable().values(), strict=True)
    worst = max(_difference(found, expected) for expected, found in pairs)
    return "stop: resumed after a step", f"{worst:.1e}", "ok" if worst == 0 else "not bit-equal"


def _compile(clips: NoiseClips, device: str) -> Row:
    model = _model(CONFIG, device)
    frames = clips.frames[:4].to(device)
    results = []
    with torch.no_grad():
        model.encode_video(frames)  # folds the frozen weights before the compiler sees them
    encode: Callable[[Tensor], Tensor] = torch.compile(model.encode_video)
    for run in (model.encode_video, encode):
        model.zero_grad(set_to_none=True)
        run(frames).square().sum(1).sum().backward()
        results.append([p.grad.flatten() for p in model.trainable().values() if p.grad is not None])
    return _row("stop: gradients compiled", torch.cat(results[1]), torch.cat(results[0]), _CLOSE)


def _kernel(device: str, tower: str, attention: Attention) -> str:
    """Returns the operators that scaled_dot_product_attention selects in bf16: flash is wanted."""
    model = build_model(tower, "random", replace(CONFIG.stop, attention=attention)).to(device)
    frames = NoiseClips(2, 4, model.image_size).frames.to(device)
    in_bf16 = torch.autocast(frames.device.type, torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, in_bf16:
        model.encode_video(frames)
    names = {event.key for event in profiler.key_averages()}
    chosen = sorted(name for name in names if name.startswith("aten::_scaled_dot_product_"))
    return ", ".join(name.removeprefix("aten::_scaled_dot_product_") for name in chosen) or "none"


def _row(what: str, found: Tensor, expected: Tensor, limit: float) -> Row:
    difference = _difference(found, expected)
    return what, f"{difference:.1e}", "ok" if difference <= limit else "DIFFERS"


def _difference(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference relative to the largest number."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
