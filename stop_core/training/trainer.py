"""The training loop of one model: order of the clips, schedule, optimizer steps.

Shapes: B clips of this process's share of a step.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from stop_core.evaluation.run_over import Clips, device_of
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import OutOfMemory, within_memory
from stop_core.runtime.distributed import my_block, my_share, rank, sum_in_place, sum_over_processes
from stop_core.runtime.gradient_sum import GradientSum
from stop_core.runtime.read_ahead import read_ahead
from stop_core.settings.experiment import ExperimentConfig
from stop_core.training.backward import backward, largest_that_fits
from stop_core.training.ema import MovingAverage
from stop_core.training.objectives import Objective
from stop_core.training.order import epoch_batches


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Step:
    """The report of one training step."""

    step: int  # of the whole training, from 0
    loss: float  # mean over the clips of the step
    learning_rate: float
    gradient_norm: float  # before clipping
    clips: int
    seconds: float  # from the end of the previous step to the end of this one
    wait_seconds: float  # part of `seconds` in which this process waited for its clips
    pause: bool  # whether any process requested a pause after the step


def _seed_dropout(seed: int, step: int, part: int) -> None:
    """Seeds dropout by the step, so that a resumed training needs no stored random state."""
    torch.manual_seed(((seed * 1_000_003 + step + 1) * 1_009 + rank()) * 1_013 + part)


def learning_rate_at(step: int, total_steps: int, config: ExperimentConfig) -> float:
    """Returns the rate of a step: cosine decay to zero after the last step, with linear warm-up."""
    fraction = config.training.warmup
    steps = config.warmup_steps if fraction is None else round(fraction * total_steps)
    warmup = min(1.0, (step + 1) / steps) if steps else 1.0
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / total_steps))


class Trainer:
    """Optimises the trainable tensors of `model` for `objective`, on one or more processes.

    The result does not depend on how many processes share a batch, nor on `micro_batch`, up to
    float32 rounding (and to dropout, which each process and micro-batch draws separately).

    Args:
        model: its trainable tensors are optimised.
        config: settings of the training.
        clips: the training split, or its pairs of a clip and a caption.
        objective: computes the loss.
        shown: returns the clips to read in an epoch, counted from 0; default: `clips`.
        micro_batch: number of clips that a process embeds at a time; None: its share of a batch.
        wants_pause: returns whether this process requests a pause after the step; `Step.pause` is
            then true on every process.
    """

    def __init__(
        self,
        model: VideoModel,
        config: ExperimentConfig,
        clips: Clips,
        objective: Objective,
        *,
        shown: Callable[[int], Clips] | None = None,
        micro_batch: int | None = None,
        wants_pause: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self.config = config
        self.clips = clips
        self.objective = objective
        self.shown = shown or (lambda epoch: clips)
        self.micro_batch = micro_batch
        self.wants_pause = wants_pause
        self.steps_per_epoch, self.total_steps = config.lengths(len(clips))
        self.optimizer = _make_optimizer(model, config)
        self.average = MovingAverage(model, config.ema)
        self._sum = GradientSum(model.trainable().values())
        self._device = device_of(model)

    @property
    def epochs(self) -> int:
        """Number of passes over the clips; with `steps`, the last one can be incomplete."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps(self, first: int) -> Iterator[Step]:
        """Trains from step `first` (of the whole training, from 0) to the end of its epoch.

        Raises:
            DivergedError: if the loss or its gradient is not finite. The weights are those of the
                previous step.
            OutOfMemory: if a step does not fit in memory; says how many clips would.
        """
        self.model.train()
        epoch, offset = divmod(first, self.steps_per_epoch)
        left = self.total_steps - first
        clips, by_shards = self.shown(epoch), self.config.training.shuffle == "shards"
        shards = clips.shards if by_shards else ()
        batches = epoch_batches(len(clips), self.config, epoch, shards)[offset:][:left]
        ended = time.perf_counter()
        part = my_block if by_shards else my_share

        def shares_of(rank: int | None = None) -> list[list[int]]:
            return [list(part(batch, rank)) for batch in batches]

        shares = shares_of()
        with closing(read_ahead(clips, shares, self._device, shares_of)) as reads:
            for step, (batch, share) in enumerate(zip(batches, shares, strict=True), first):
                started = time.perf_counter()
                frames = next(reads)
                waited = time.perf_counter() - started
                sums = self._backward(step, batch, share, frames)
                learning_rate, loss, norm, pause = self._update(step, batch, sums)
                now = time.perf_counter()
                yield Step(step, loss, learning_rate, norm, len(batch), now - ended, waited, pause)
                ended = time.perf_counter()

    def _backward(self, step: int, batch: list[int], share: list[int], frames: Tensor) -> Tensor:
        """Computes the gradients; returns the mean loss and the number of processes that pause."""
        self.optimizer.zero_grad(set_to_none=True)
        epoch = step // self.steps_per_epoch
        own_loss = within_memory(
            lambda: backward(
                self.objective,
                frames,
                share,
                epoch=epoch,
                total=len(batch),
                micro_batch=self.micro_batch,
                seed=lambda part: _seed_dropout(self.config.seed, step, part),
                last=self._sum,
            )
        )
        if own_loss is None:
            raise self._out_of_memory(frames, epoch)
        self._sum.finish()
        pauses = torch.full_like(own_loss, float(self.wants_pause()))
        return sum_in_place(torch.stack([own_loss, pauses]))

    def _update(
        self, step: int, batch: list[int], sums: Tensor
    ) -> tuple[float, float, float, bool]:
        """Updates the weights; returns learning rate, loss, norm of the gradient and pause."""
        learning_rate = learning_rate_at(step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["share"]
        parameters = list(self.model.trainable().values())
        norm_on_device = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        report = torch.cat([sums, norm_on_device.to(sums)[None]])
        # As for GradScaler: a fused optimizer changes nothing on the device if this is 1.
        self.optimizer.found_inf = 1 - report.isfinite().all().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        loss, pauses, norm = report.tolist()  # the only time that the host waits for the device
        for value, name in ((loss, "loss"), (norm, "norm of the gradient")):
            if not math.isfinite(value):
                raise DivergedError(
                    f"the {name} is {value} at step {step}; lower --learning-rate, or check the "
                    f"clips of this batch: {', '.join(self.clips.video_ids[i] for i in batch)}"
                )
        self.model.end_step(sum_over_processes)
        self.average.update(step + 1)
        return learning_rate, loss, norm, pauses > 0

    def _out_of_memory(self, frames: Tensor, epoch: int) -> OutOfMemory:
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        tried = min(self.micro_batch or len(frames), len(frames))
        fits = largest_that_fits(self.objective, frames[:tried], epoch)
        if not fits:
            return OutOfMemory(
                f"not even one clip of {frames.shape[1]} frames fits in the memory of a worker; "
                "use --checkpoint-activations True, --precision bf16, a cache of fewer frames, or "
                "a smaller --tower"
            )
        return OutOfMemory(
            f"{tried} clips at once do not fit in the memory of a worker, {fits} do: give "
            f"--micro-batch {fits} for the same result, or a smaller --batch-size"
        )


def _make_optimizer(model: VideoModel, config: ExperimentConfig) -> torch.optim.AdamW:
    """Returns AdamW with a separate learning rate for the spatial prompting layers."""

    def decays(name: str, parameter: Tensor) -> bool:
        return options.decay_biases or not (name.endswith("bias") or parameter.ndim < 2)

    options = config.training
    groups = []
    for is_spatial, share in ((False, 1.0), (True, config.spatial_rate)):
        own = [(n, p) for n, p in model.trainable().items() if (".spatial." in n) == is_spatial]
        for is_decayed, decay in ((True, config.weight_decay), (False, 0.0)):
            if chosen := [p for n, p in own if decays(n, p) == is_decayed]:
                groups.append({"params": chosen, "share": share, "weight_decay": decay})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
        fused=True,  # without it, dozens of small tensors cost a tenth of a step
    )
