"""Training the prompts of one model: an epoch, a step, an evaluation.

Shapes: B clips of a step, M clips of a split, N classes.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stop_core.cache import CachedClips
from stop_core.distributed import (
    gather_rows,
    my_share,
    rank,
    sum_gradients,
    sum_over_processes,
)
from stop_core.experiment import ExperimentConfig
from stop_core.losses import recognition_loss
from stop_core.text import ClassTexts, embeddings_of
from stop_core.video_model import VideoModel

EVALUATION_BATCH = 64


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Step:
    """What one training step reports."""

    step: int  # of the whole training, from 0
    loss: float  # mean over the clips of the step
    learning_rate: float
    gradient_norm: float  # before clipping
    clips: int
    seconds: float


def seed_weights(seed: int) -> None:
    """Seeds torch before a model is built: alike on every process, so that all start alike."""
    torch.manual_seed(seed)


def _seed_dropout(seed: int, epoch: int) -> None:
    """Seeds torch for one epoch and this process, so that a resumed epoch repeats itself."""
    torch.manual_seed((seed * 1_000_003 + epoch + 1) * 1_009 + rank())


def epoch_batches(clips: int, config: ExperimentConfig, epoch: int) -> list[list[int]]:
    """The batches of an epoch: every clip once, in an order that seed and epoch alone decide."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(clips, generator=generator).tolist()
    return [order[i : i + config.batch_size] for i in range(0, clips, config.batch_size)]


def learning_rate_at(step: int, total_steps: int, config: ExperimentConfig) -> float:
    """Linear warm-up, then a cosine decay that reaches zero after the last step."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / total_steps))


class Trainer:
    """Optimises the trainable tensors of `model` for recognition, on one or more processes.

    The result does not depend on how many processes share a batch, up to float32 rounding.
    """

    def __init__(
        self,
        model: VideoModel,
        config: ExperimentConfig,
        clips: CachedClips,
        texts: Tensor | ClassTexts,
    ) -> None:
        self.model = model
        self.config = config
        self.clips = clips
        if isinstance(texts, Tensor) and model.trains_text:
            raise ValueError("this model trains its texts; give ClassTexts, not their embeddings")
        self.texts = texts
        self.steps_per_epoch = math.ceil(len(clips) / config.batch_size)
        self.optimizer = _make_optimizer(model, config)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.config.epochs

    def train_epoch(self, epoch: int, on_step: Callable[[Step], None]) -> None:
        """Runs epoch `epoch` (from 0) and reports every step.

        Raises:
            DivergedError: if the loss is no longer finite; names the step and its clips.
        """
        self.model.train()
        _seed_dropout(self.config.seed, epoch)
        batches = epoch_batches(len(self.clips), self.config, epoch)
        for offset, batch in enumerate(batches):
            on_step(self._step(epoch * self.steps_per_epoch + offset, batch))

    def _step(self, step: int, batch: list[int]) -> Step:
        started = time.perf_counter()
        learning_rate = learning_rate_at(step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["share"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        if not math.isfinite(loss):
            names = ", ".join(self.clips.video_ids[i] for i in batch)
            raise DivergedError(
                f"the loss is {loss} at step {step}; lower --learning-rate, or look at the clips "
                f"of this batch: {names}"
            )
        parameters = list(self.model.trainable().values())
        sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()
        seconds = time.perf_counter() - started
        return Step(step, loss, learning_rate, float(norm), len(batch), seconds)

    def _backward(self, batch: list[int]) -> float:
        """Adds up this process's gradients and returns the mean loss over the whole batch."""
        mine = my_share(batch)
        part = 0.0
        if mine:
            logits_BN = self.model(self.clips.read(mine), embeddings_of(self.texts))
            labels_B = self.clips.labels[list(mine)].to(logits_BN.device)
            loss = recognition_loss(logits_BN, labels_B, len(batch))
            loss.backward()
            part = loss.item()
        (mean,) = sum_over_processes([part], self.model.logit_scale.device)
        return mean


@torch.no_grad()
def predict(model: VideoModel, clips: CachedClips, texts: Tensor | ClassTexts) -> Tensor:
    """Returns the logits of every clip of a split, [M, N], on the CPU of every process."""
    model.eval()
    text_NE = embeddings_of(texts)
    mine = list(my_share(range(len(clips))))
    parts = [model(clips.read(part), text_NE).float() for part in _chunks(mine, EVALUATION_BATCH)]
    rows = torch.cat(parts) if parts else text_NE.new_empty(0, len(text_NE))
    return gather_rows(rows, mine, len(clips))


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _make_optimizer(model: VideoModel, config: ExperimentConfig) -> torch.optim.AdamW:
    """AdamW, with a rate of their own for the spatial prompting layers."""
    spatial = [p for name, p in model.trainable().items() if ".spatial." in name]
    others = [p for name, p in model.trainable().items() if ".spatial." not in name]
    groups = [{"params": others, "share": 1.0}, {"params": spatial, "share": config.spatial_rate}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,  # dozens of small tensors: one by one, they cost a tenth of a step
    )
