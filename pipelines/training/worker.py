"""What a training worker does: train epoch by epoch, keep the best by validation, test once.

A worker that is killed goes on after the last step that a checkpoint holds, and ends with the same
weights and the same records.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from stop_core.cache import FrameCache
from stop_core.cache.integrity import ChangedDataError
from stop_core.clip.loading import load_clip
from stop_core.clip.shared import ClipCache
from stop_core.explain.prompt_monitor import PromptMonitor
from stop_core.explain.training_figures import confusion, save_figure
from stop_core.model.video_model import VideoModel
from stop_core.runtime.distributed import (
    broadcast_object,
    copy_from_first,
    gather_objects,
    rank,
    world_size,
)
from stop_core.runtime.seeding import seed_weights
from stop_core.trained_model.files import TOWER
from stop_core.trained_model.model import tower_facts
from stop_core.training.checkpoint import Checkpoint, check_whole
from stop_core.training.clip_views import ShownClips
from stop_core.training.objectives import Measured, make_objective
from stop_core.training.run_state import LAST_PROMPTS, RunProgress, read_progress
from stop_core.training.trainer import DivergedError, Trainer

from ..tracking.outbox import Courier
from ..tracking.queued_run import QueuedRun
from .checkpoints import furthest
from .metrics_buffer import MetricsBuffer
from .progress_file import ProgressFile
from .session import Session
from .task import FIGURES, PREDICTIONS, WorkerTask
from .worker_model import compile_encoder, prepare_model

_LOG = logging.getLogger(__name__)


class WorkerRun:
    """The state of one worker."""

    def __init__(self, task: WorkerTask, session: Session, keeper: ClipCache | None = None) -> None:
        torch.set_num_threads(task.threads)
        self.task = task
        self.config = task.config
        self.session = session
        self.cache = FrameCache(task.cache)
        self.wanted = ("train", "val", "test") if task.test else ("train", "val")
        self.contents = self.cache.watch(self.wanted)  # before anything of it is read
        device = session.device(task.gpu)
        seed_weights(self.config.seed)
        load = keeper.load if keeper else load_clip
        clip = load(self.config.tower, self.config.pretrained)
        self.tower = tower_facts(clip)  # before it is trained, if it is
        self.model = prepare_model(task, clip, len(self.cache.manifest.class_names), device)
        self.splits = self._split_clips()
        if task.compile:
            compile_encoder(self.model, self.config.method, self.splits["train"].shape, device)
        self.objective = make_objective(
            self.model, self.config, self.cache.manifest, {**self.splits}
        )
        # What fits into memory with its gradients does without them.
        share = task.micro_batch or -(-self.config.batch_size // world_size())
        self.objective.evaluation_batch = min(share, self.objective.evaluation_batch)
        self.trainer = self._make_trainer()
        self.progress = RunProgress()
        self.best_prompts = self.model.prompt_state_dict()
        first = rank() == 0
        self.tracked = QueuedRun(task.folder, task.tracking_uri) if first else None
        self.courier = Courier(self.tracked.deliver) if self.tracked else None
        self.recorder = MetricsBuffer(ProgressFile(task.progress_file) if first else None, device)
        self.observer = (
            PromptMonitor(self.model, self.config, self.splits.get("val", self.splits["train"]))
            if first
            else None
        )
        self._saved = time.monotonic()
        self._resume()
        copy_from_first(self.model.trainable().values())

    def run(self) -> None:
        """Trains what is left to train, then tests the chosen epoch and reports it all."""
        try:
            if self.progress.final is None:
                self._train()
                self._finish()
        finally:
            if self.courier:
                self.courier.close()

    def _train(self) -> None:
        while self.trainer and self.progress.epochs_done < self.config.epochs:
            self.train_epoch(self.trainer)

    def train_epoch(self, trainer: Trainer) -> None:
        """Trains what is left of the epoch, validates and saves."""
        end = (self.progress.epochs_done + 1) * trainer.steps_per_epoch
        if self.progress.step < end:  # otherwise killed while it was validated
            self._train_until(end, trainer)
        self._end_epoch(trainer)

    def _train_until(self, end: int, trainer: Trainer) -> None:
        try:
            for step in trainer.steps(self.progress.step):
                self.progress.step = step.step + 1
                last = self.progress.step == end
                self.recorder.add_step(step, trainer.total_steps, last_of_epoch=last)
                if not last and (step.pause or self._is_due_by_steps()):
                    self._save({"epoch": self.progress.epochs_done, "finished": 0})
        except DivergedError as problem:
            folder = self.session.latest()
            kept = f"the last good checkpoint is {folder}" if folder else "no checkpoint is kept"
            raise DivergedError(f"{problem}; {kept}") from problem

    def _end_epoch(self, trainer: Trainer) -> None:
        """Validates, keeps the epoch if it is the best, and saves."""
        self.contents.wait()
        with trainer.average.in_place():
            metrics = {f"val/{k}": v for k, v in self._measure("val").metrics.items()}
            seen = self.observer.end_epoch() if self.observer else {}
        self._keep_best(metrics, trainer)
        self.progress.epochs_done += 1
        # `epoch` is what schedulers of a sweep count by; it is the same after a restart.
        metrics["epoch"] = float(self.progress.epochs_done)
        self.recorder.add({**metrics, **seen}, self.progress.step)
        report = {**metrics, **self._costs(), "finished": 0}
        self.progress.curve.append(report)
        self._save(report)
        self.recorder.report(self._epoch_line(metrics))

    def _epoch_line(self, metrics: dict[str, float]) -> str:
        """What the user reads of an epoch; the driver adds the time left."""
        parts = [] if self.recorder.loss is None else [f"loss {self.recorder.loss:.3f}"]
        chosen_by = f"val/{self.objective.chosen_by}"
        if chosen_by in metrics:
            best = self.progress.best_metrics[chosen_by]
            parts.append(f"{chosen_by} {metrics[chosen_by]:.4f}")
            parts.append(f"best {best:.4f} (epoch {self.progress.best_epoch})")
        else:
            parts.append("no validation split")
        return f"epoch {self.progress.epochs_done}/{self.config.epochs}: {', '.join(parts)}"

    def _costs(self) -> dict[str, float]:
        """What a sweep may weigh the measures against."""
        seconds = self.recorder.costs().get("step_seconds")
        costs = {"trainable_parameters": float(_size(self.model))}
        return {**costs, "step_seconds": seconds} if seconds else costs

    def _keep_best(self, metrics: dict[str, float], trainer: Trainer) -> None:
        """Keeps this epoch if validation is better than before; without validation, always."""
        chosen_by = f"val/{self.objective.chosen_by}"
        best = self.progress.best_metrics.get(chosen_by, -1.0)
        if metrics.get(chosen_by, 2.0) > best:
            self.best_prompts = trainer.average.weights()
            self.progress.best_epoch = self.progress.epochs_done + 1
            self.progress.best_metrics = dict(metrics)

    def _finish(self) -> None:
        """Evaluates validation and, this once, test with the chosen weights."""
        self.contents.wait()
        self.progress.problems = []
        trained = self.model.prompt_state_dict()
        self.model.load_prompt_state_dict(self.best_prompts)
        metrics: dict[str, float] = {}
        rows = []
        for split in ("val", "test"):
            measured = self._measure(split)
            metrics |= {f"{split}/{name}": value for name, value in measured.metrics.items()}
            if measured.confusion_CC is not None and split == "test":
                self._draw(partial(self._draw_confusion, measured.confusion_CC))
            if measured.rows:
                rows.append(pd.DataFrame({"split": split, **measured.rows}))
        # A figure shows one clip at a time, which is not worth minutes of another compilation.
        self.model.__dict__.pop("encode_video", None)
        if self.observer:
            self._draw(partial(self.observer.draw, self.task.folder / FIGURES))
            if self.task.test:  # a trial of a sweep is one of many
                names = self.cache.manifest.class_names
                folder, ask = self.task.folder / FIGURES, self.objective.probabilities
                self._draw(partial(self.observer.explain, folder, ask, names))
        self.model.load_prompt_state_dict(trained)
        metrics["best_epoch"] = float(self.progress.best_epoch or 0)
        metrics["trainable_parameters"] = float(_size(self.model))
        # Under a name of its own: `val/...` is the curve over all epochs.
        told = {name.replace("val/", "val_best/"): value for name, value in metrics.items()}
        self.progress.costs = self.recorder.costs()
        told |= {f"cost/{name}": value for name, value in self.progress.costs.items()}
        self.recorder.add(told, self.progress.step)
        self.progress.final = metrics
        results = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
        self._save({**metrics, "epoch": self.config.epochs, "finished": 1}, results)

    def _draw(self, draw: Callable[[], None]) -> None:
        """Draws figures; one that cannot be drawn is noted in the result, and ends nothing."""
        try:
            draw()
        except Exception as problem:  # of matplotlib, or whatever it calls
            _LOG.exception("a figure could not be drawn")
            reason = " ".join(str(problem).split()) or type(problem).__name__
            self.progress.problems.append(f"a figure is missing: {reason[:300]}")

    def _draw_confusion(self, counts_CC: Tensor) -> None:
        if rank() == 0:
            manifest = self.cache.manifest
            figure = confusion(counts_CC, manifest.class_words, f"{manifest.dataset}, test split")
            save_figure(figure, self.task.folder / FIGURES / "confusion.png")

    def _measure(self, split: str) -> Measured:
        """Empty where the split has no clips, or is not to be looked at."""
        if split not in self.splits:
            return Measured({}, {})
        return self.objective.measure(self.splits[split])

    def _split_clips(self) -> dict[str, ShownClips]:
        counts = self.cache.manifest.counts
        return {
            name: ShownClips(self.cache.split(name), self.config, self.model.image_size)
            for name in self.wanted
            if counts.get(name)
        }

    def _make_trainer(self) -> Trainer | None:
        """None for a method that has nothing to train."""
        if not self.model.trainable() or self.config.epochs == 0:
            return None
        return Trainer(
            self.model,
            self.config,
            self.splits["train"],
            self.objective,
            shown=self.splits["train"].in_epoch,
            micro_batch=self.task.micro_batch,
            wants_pause=self._is_due_by_time,
        )

    def _is_due_by_steps(self) -> bool:
        every = self.task.checkpoint_every_steps
        return every is not None and self.progress.step % every == 0

    def _is_due_by_time(self) -> bool:
        """Asked of every worker, and answered by the clock of the first alone."""
        since = time.monotonic() - self._saved
        return rank() == 0 and since >= 60 * self.task.checkpoint_minutes

    def _resume(self) -> None:
        """Goes on from the furthest checkpoint, whoever has made it and knows of it."""
        start = self.task.start
        # One process looks: another's view of a shared folder may lag behind.
        own, states = None, gather_objects(self.contents.state)
        if rank() == 0:
            own = furthest(self.task.folder, self.session.latest(), states)
        own = broadcast_object(own)
        if found := own or (None if self.task.fork else start):
            checkpoint = self._read(found)
            _refuse_unverified(found, checkpoint.progress, states)
            self._load(checkpoint)
            self.recorder.report(
                f"resuming {checkpoint.origin.run} after epoch {self.progress.epochs_done} of "
                f"{self.config.epochs}, step {self.progress.step}: {found}"
            )
            if found != self.session.latest():
                self.progress.final = None  # tested again, for a result of this session
        elif start is not None:
            check_whole(start)
            _refuse_unverified(start, read_progress(start), ())
            self.model.load_prompt_state_dict(load_file(start / LAST_PROMPTS))
            self.best_prompts = self.model.prompt_state_dict()
            self.recorder.report(f"starting with the weights of {start}")

    def _read(self, folder: Path) -> Checkpoint:
        groups = self.trainer.optimizer.state_dict()["param_groups"] if self.trainer else []
        return Checkpoint.load(folder, groups)

    def _load(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of this training."""
        self.model.load_prompt_state_dict(checkpoint.prompts)
        self.best_prompts = checkpoint.best_prompts
        self.progress = checkpoint.progress
        if self.trainer:
            self.trainer.optimizer.load_state_dict(checkpoint.optimizer)
            self.trainer.average.load(checkpoint.average)
        self.recorder.restore(checkpoint.progress.records)
        if self.observer:
            self.observer.restore(checkpoint.behaviour)
        self._tell()  # it may have been killed before it had told what the checkpoint holds

    def _save(self, metrics: dict[str, float], results: pd.DataFrame | None = None) -> None:
        """Every rank reports; rank 0 brings the checkpoint."""
        # A damaged cache raises here. One that is not compared yet, in the first epoch, is noted.
        own = "" if self.contents.is_verified() else self.contents.state
        self.progress.unverified = sorted(set(gather_objects(own)) - {""})

        def write(folder: Path) -> None:
            if results is not None:
                results.to_parquet(folder / PREDICTIONS, index=False)
                self.tower.save(folder / TOWER)
            self._checkpoint().save(folder)

        self.session.report(metrics, write if rank() == 0 else None)
        self._saved = time.monotonic()
        self._tell()

    def _checkpoint(self) -> Checkpoint:
        self.progress.records = self.recorder.state()
        run_id = self.tracked.run_id if self.tracked else ""
        trainer = self.trainer
        return Checkpoint(
            progress=self.progress,
            origin=replace(self.task.origin, mlflow_run_id=run_id),
            prompts=self.model.prompt_state_dict(),
            best_prompts=self.best_prompts,
            average=trainer.average.average if trainer else {},
            behaviour=self.observer.state() if self.observer else {},
            optimizer=trainer.optimizer.state_dict() if trainer else {"state": {}},
        )

    def _tell(self) -> None:
        """Hands what the last checkpoint holds to the tracking server, in the background.

        Not of data that may turn out to be damaged: the next checkpoint holds it again.
        """
        if self.progress.unverified:
            return
        points = self.recorder.take()
        if self.tracked and self.courier:
            self.tracked.log_points(points)
            self.courier.call()


def _refuse_unverified(checkpoint: Path, progress: RunProgress, states: Collection[str]) -> None:
    if not progress.may_resume(states):
        raise ChangedDataError(
            f"{checkpoint} was trained on files of a cache that had not been verified then and "
            "have changed since: train from the start, or from another checkpoint"
        )


def _size(model: VideoModel) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.trainable().values())
