"""Pretrains a tiny CLIP on rendered stills and writes its weights with their provenance.

    python -m tools.tiny_clip.pretrain --seed 0 --steps 3000
    python -m tools.tiny_clip.pretrain --seed 0 --steps 1000 --tower tiny-64 --start-from tiny

The budget is in steps and everything runs on one thread, so the same command gives the same bytes
on the same machine and library versions.

Shapes: N stills and N captions of a batch.
"""

import dataclasses
import datetime
import hashlib
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from stop_core.tiny.shipped import TINY_TOWERS, TinyTower
from stop_core.tiny.tower import TinyTokenizer, build_tiny_clip, load_weights
from tools.tiny_clip.stills import draw_stills
from tools.tiny_clip.zeroshot import zero_shot_accuracy

_MAX_LOG_SCALE = math.log(100)
_REPORT_EVERY = 250
_HELD_OUT = 2048
_HELD_OUT_SEED = 10_000


@dataclass(frozen=True)
class PretrainConfig:
    """Options of the pretraining."""

    tower: Literal["tiny", "tiny-64"] = "tiny"
    """The architecture: 32 x 32 pixels and 16 patches, or 64 x 64 pixels and 64 patches."""
    start_from: Literal["tiny", "tiny-64"] | None = None
    """Initialise from the shipped weights of this tower, with its positional embedding interpolated
    (default: random weights)."""
    seed: int = 0
    """Seeds the initial weights and the stills."""
    steps: int = 3000
    """Number of optimizer steps; every step draws new stills."""
    batch_size: int = 64
    """Number of stills per step."""
    learning_rate: float = 7e-4
    """Peak learning rate. At 2e-3, position was never learned."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.05
    """Weight decay of matrices; other parameters have none."""
    output: Path | None = None
    """The .safetensors file to write (default: the shipped file of the tower); the provenance is
    written next to it, with the suffix .json."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
        for name, tower in (("tower", self.tower), ("start-from", self.start_from)):
            if tower is not None and tower not in TINY_TOWERS:
                raise ValueError(f"--{name} must be one of {', '.join(TINY_TOWERS)}, got {tower!r}")
        if self.file.suffix != ".safetensors":
            raise ValueError(f"--output must end in .safetensors, got {self.output}")

    @property
    def file(self) -> Path:
        """The file of the weights."""
        return self.output or self.shape.weights

    @property
    def shape(self) -> TinyTower:
        """The tower that is pretrained."""
        return TINY_TOWERS[self.tower]

    @property
    def start(self) -> TinyTower | None:
        """The tower whose weights are the initial ones; None for random weights."""
        return TINY_TOWERS[self.start_from] if self.start_from else None


def match_loss(logits_NN: Tensor, match_NN: Tensor) -> Tensor:
    """InfoNCE with several positives: the target of a row (and column) is even over its matches."""
    match_NN = match_NN.to(logits_NN.dtype)
    by_image = F.cross_entropy(logits_NN, match_NN / match_NN.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits_NN.T, (match_NN / match_NN.sum(0, keepdim=True)).T)
    return (by_image + by_text) / 2


def rate_at(step: int, config: PretrainConfig) -> float:
    """Returns the learning rate of `step`: linear warm-up times a cosine down to 2% of the peak."""
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.learning_rate * warmup * (0.02 + 0.98 * cosine)


def train(config: PretrainConfig) -> CLIP:
    """Trains a tiny CLIP and returns it; prints its progress."""
    torch.manual_seed(config.seed)
    generator = Generator().manual_seed(config.seed)
    tokenizer = TinyTokenizer()
    model = build_tiny_clip(pretrained=False, tower=config.shape).train()
    if config.start:
        load_weights(model, config.start.weights, resize=True)
    optimizer = _optimizer(model, config)
    started = time.monotonic()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, config)
        stills = draw_stills(config.batch_size, generator, pixels=config.shape.image_size)
        images_ND, texts_ND, scale = model(stills.images_NCHW, tokenizer(stills.captions))
        loss = match_loss(scale * images_ND @ texts_ND.T, stills.match_NN)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=_MAX_LOG_SCALE)
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == config.steps:
            _report(step + 1, config.steps, loss.item(), time.monotonic() - started)
    return model.eval()


def _optimizer(model: CLIP, config: PretrainConfig) -> torch.optim.Optimizer:
    matrices = [value for value in model.parameters() if value.ndim >= 2]
    others = [value for value in model.parameters() if value.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def _report(done: int, steps: int, loss: float, elapsed: float) -> None:
    remaining = elapsed / done * (steps - done)
    print(f"step {done}/{steps}  loss {loss:.3f}  eta {remaining:.0f} s", flush=True)


def save_weights(model: CLIP, config: PretrainConfig, cpu_seconds: float) -> dict[str, Any]:
    """Writes the weights in fp16 and their provenance, each atomically; returns the provenance.

    Accuracy is measured on the weights as stored, after rounding. The provenance contains the
    sha256 of the weights, and of the initial weights if any.
    """
    part = config.file.with_name(f".{config.file.name}.{os.getpid()}.part")
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, part)
    part.chmod(0o644)  # safetensors writes files that only their owner can read; these are shipped
    load_weights(model, part)
    held_out = draw_stills(
        _HELD_OUT,
        Generator().manual_seed(_HELD_OUT_SEED),
        pixels=config.shape.image_size,
        single=True,
    )
    provenance = {
        "command": _command(config),
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k != "output"},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu_seconds": round(cpu_seconds),
        "licence": "Apache-2.0",
        "data": "stills rendered by tools.tiny_clip.stills; nothing downloaded",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "open_clip_torch", "safetensors", "numpy")},
        "parameters": sum(value.numel() for value in model.parameters()),
        "sha256": _sha256(part),
        "start_sha256": _sha256(config.start.weights) if config.start else None,
        "held_out": {"stills": _HELD_OUT, "seed": _HELD_OUT_SEED},
        "zero_shot": zero_shot_accuracy(model, TinyTokenizer(), held_out),
    }
    text = part.with_suffix(".json.part")
    text.write_text(json.dumps(provenance, indent=2) + "\n")
    os.replace(part, config.file)
    os.replace(text, config.file.with_suffix(".json"))
    return provenance


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _command(config: PretrainConfig) -> str:
    """Returns the command that makes these weights, without the private path of --output."""
    command = f"python -m tools.tiny_clip.pretrain --seed {config.seed} --steps {config.steps}"
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("seed", "steps", "output") and value != field.default:
            command += f" --{field.name.replace('_', '-')} {value}"
    return command


def main() -> None:
    """Pretrains by the options on the command line."""
    config = tyro.cli(PretrainConfig, description=__doc__)
    config.file.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums over several threads differ in their last bit
    started = time.process_time()
    model = train(config)
    provenance = save_weights(model, config, time.process_time() - started)
    size = config.file.stat().st_size / 1e6
    print(f"wrote {config.file} ({size:.2f} MB)  zero-shot {provenance['zero_shot']}")


if __name__ == "__main__":
    main()
