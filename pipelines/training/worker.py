"""The worker's side of one training: trains, keeps the best epoch by validation, tests it once.

An interrupted worker resumes after the last step that a checkpoint holds, and ends with the same
weights and the same records.
"""

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from stop_core.cache import FrameCache
from stop_core.cache.integrity import ChangedDataError
from stop_core.clip.loading import ClipCache, load_clip
from stop_core.datasets import Split
from stop_core.evaluation.measure import Measured
from stop_core.explain.prompt_monitor import PromptMonitor
from stop_core.runtime import distributed
from stop_core.runtime.devices import seed_weights
from stop_core.storage.atomic import fetched_folder
from stop_core.storage.paths import StoragePath
from stop_core.trained_model.files import TOWER
from stop_core.trained_model.model import tower_facts
from stop_core.training.checkpoint import Checkpoint, check_whole
from stop_core.training.clip_views import ShownClips
from stop_core.training.objectives import make_objective
from stop_core.training.protocol import protocol_clips
from stop_core.training.run_state import LAST_PROMPTS, RunProgress, read_progress
from stop_core.training.trainer import DivergedError, Trainer

from ..tracking.outbox import Courier
from ..tracking.queued_run import QueuedRun
from .checkpoints import latest_checkpoint
from .metrics_buffer import MetricsBuffer
from .progress_file import ProgressFile
from .session import FolderSession
from .task import FIGURES, PAUSE, PREDICTIONS, PROGRESS_FILE, WorkerTask
from .worker_model import compile_training, prepare_model

_LOG = logging.getLogger(__name__)
_FEWEST_STEPS = 1000
"""Steps for which `compile: auto` compiles: fewer do not repay the minutes that it takes."""


class WorkerRun:
    """A training as one worker sees it. Rank 0 also logs metrics, draws figures and writes files.

    `session` receives reports and checkpoints. `clips` provides the CLIP; None: it is loaded.
    """

    def __init__(
        self, task: WorkerTask, session: FolderSession, clips: ClipCache | None = None
    ) -> None:
        torch.set_num_threads(max(1, int(task.resources.cpus_per_worker)))
        self.task = task
        self.config = task.config
        self.session = session
        self.cache = FrameCache(task.cache, task.resources.local_cache_bytes)
        manifest = self.cache.manifest
        wanted: tuple[Split, ...] = ("train", "val", "test") if task.test else ("train", "val")
        self.contents = self.cache.watch(wanted)  # before any of them is read
        device = session.device(task.resources.gpus_per_worker > 0)
        seed_weights(self.config.seed)
        clip = (clips.load if clips else load_clip)(self.config.tower, self.config.pretrained)
        self.tower = tower_facts(clip)  # before training changes it
        self.model = prepare_model(task, clip, len(manifest.class_names), device)
        chosen, self.remarks = protocol_clips(self.cache, self.config, wanted)
        self.splits: dict[str, ShownClips] = {
            split: ShownClips(some, self.config, self.model.image_size, is_trained=split == "train")
            for split, some in chosen.items()
        }
        train = self.splits["train"]
        self.objective = make_objective(self.model, self.config, manifest, {**self.splits})
        # A batch that fits into memory during training also fits during evaluation.
        share = task.resources.micro_batch or -(-self.config.batch_size // distributed.world_size())
        self.objective.evaluation_batch = min(share, self.objective.evaluation_batch)
        self.trainer: Trainer | None = None
        self.epochs = self.config.epochs
        if self.model.trainable() and self.config.epochs > 0:
            self.trainer = Trainer(
                self.model,
                self.config,
                train,
                self.objective,
                shown=train.in_epoch,
                micro_batch=task.resources.micro_batch,
                wants_pause=self._is_due_by_time,
            )
            self.epochs = self.trainer.epochs
        self.progress = RunProgress()
        self.best_prompts = self.model.prompt_state_dict()
        first = distributed.rank() == 0
        self.tracked = QueuedRun(task.folder, task.tracking_uri) if first else None
        self.courier = Courier(self.tracked.deliver) if self.tracked else None
        progress_file = ProgressFile(task.folder / PROGRESS_FILE) if first else None
        self.buffer = MetricsBuffer(progress_file, device)
        shown = self.splits.get("val", train)
        self.monitor = PromptMonitor(self.model, self.config, shown) if first else None
        self._saved = self._looked = time.monotonic()
        self._is_paused = False
        for remark in self.remarks:
            self.buffer.report(f"note: {remark}")
        self._resume()
        distributed.copy_from_first(self.model.learned().values())

    def run(self) -> None:
        """Trains the remaining epochs, then evaluates the best epoch and reports the result."""
        try:
            if self.progress.final is None:
                if self.trainer and self.progress.epochs_done < self.epochs:
                    self._compile(self.trainer.total_steps - self.progress.step)
                while self.trainer and self.progress.epochs_done < self.epochs:
                    self.train_epoch(self.trainer)
                    if self._is_paused or distributed.broadcast_object(self._must_pause()):
                        return
                self._finish()
        finally:
            if self.courier:
                self.courier.close()

    def _compile(self, steps: int) -> None:
        resources, train = self.task.resources, self.splits["train"]
        is_auto = resources.compile == "auto"
        share = len(distributed.my_share(range(min(self.config.batch_size, len(train)))))
        clips = min(share, resources.micro_batch or share)
        is_compiled = False
        is_off = resources.compile == "off" or (is_auto and steps < _FEWEST_STEPS)
        if clips and not is_off and not self.model.not_compiled:
            is_compiled = compile_training(
                self.model,
                self.config,
                (clips, *train.shape),
                required=not is_auto,
                report=self.buffer.report,
            )
        if self.tracked and is_auto:
            self.tracked.set_tags({"compile": "on" if is_compiled else "off"})

    def train_epoch(self, trainer: Trainer) -> None:
        """Trains the remaining steps of the epoch, validates, and saves a checkpoint."""
        end = (self.progress.epochs_done + 1) * trainer.steps_per_epoch
        end = min(end, trainer.total_steps)
        every = self.task.resources.checkpoint_every_steps
        is_trained = self.progress.step >= end  # it was interrupted during validation
        try:
            for step in () if is_trained else trainer.steps(self.progress.step):
                self.progress.step = step.step + 1
                last = self.progress.step == end
                self.buffer.add_step(step, trainer.total_steps, last_of_epoch=last)
                is_due = step.pause or (every is not None and self.progress.step % every == 0)
                if is_due and not last:
                    self._save({"epoch": self.progress.epochs_done, "finished": 0})
                    if distributed.broadcast_object(self._must_pause()):
                        self._is_paused = True
                        return
        except DivergedError as problem:
            folder = self.session.latest()
            good = f"the last good checkpoint is {folder}" if folder else "there is no checkpoint"
            raise DivergedError(f"{problem}; {good}") from problem
        self._end_epoch(trainer)

    def _is_due_by_time(self) -> bool:
        """Whether the clock of rank 0 asks for a checkpoint; the trainer passes it to all ranks."""
        if distributed.rank() != 0:
            return False
        now = time.monotonic()
        # A shared folder may be slow, and a store is asked over the network.
        if now - self._looked >= (1 if isinstance(self.task.folder, Path) else 10):
            self._looked = now
            if self._must_pause():
                return True
        return now - self._saved >= 60 * self.task.resources.checkpoint_minutes

    def _must_pause(self) -> bool:
        pause = self.task.folder / PAUSE
        if isinstance(pause, Path):
            return pause.exists()
        with suppress(OSError):  # the store is away; it is asked again
            return pause.once().exists()
        return False

    def _end_epoch(self, trainer: Trainer) -> None:
        self.contents.wait()
        progress = self.progress
        with trainer.average.in_place():
            metrics = {f"val/{k}": v for k, v in self._measure("val").metrics.items()}
            prompt_metrics = self.monitor.end_epoch() if self.monitor else {}
        progress.epochs_done += 1
        chosen_by = f"val/{self.objective.chosen_by}"
        # Without validation, the last epoch is taken.
        if metrics.get(chosen_by, 2.0) > progress.best_metrics.get(chosen_by, -1.0):
            self.best_prompts = trainer.average.weights()
            progress.best_epoch = progress.epochs_done
            progress.best_metrics = dict(metrics)
        # The schedulers of a sweep count by `epoch`, which a restart does not change.
        metrics["epoch"] = float(progress.epochs_done)
        self.buffer.add({**metrics, **prompt_metrics}, progress.step)
        # A sweep can weigh the metrics against these costs.
        costs = {"trainable_parameters": float(self._trainable_parameters())}
        if seconds := self.buffer.costs().get("step_seconds"):
            costs["step_seconds"] = seconds
        report = {**metrics, **costs, "finished": 0}
        progress.curve.append(report)
        self._save(report)
        self.buffer.report(self._epoch_line(metrics, chosen_by))

    def _epoch_line(self, metrics: dict[str, float], chosen_by: str) -> str:
        parts = [] if self.buffer.loss is None else [f"loss {self.buffer.loss:.3f}"]
        if chosen_by in metrics:
            best = self.progress.best_metrics[chosen_by]
            parts.append(f"{chosen_by} {metrics[chosen_by]:.4f}")
            parts.append(f"best {best:.4f} (epoch {self.progress.best_epoch})")
        else:
            parts.append("no validation")
        return f"epoch {self.progress.epochs_done}/{self.epochs}: {', '.join(parts)}"

    def _finish(self) -> None:
        """Evaluates the validation split and, only here, the test split with the best weights."""
        self.contents.wait()
        self.progress.problems = list(self.remarks)
        manifest, figures = self.cache.manifest, self.task.folder / FIGURES
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
        if self.monitor:
            self._draw(partial(self.monitor.draw, figures))
            if self.task.test:  # not for every trial of a sweep
                ask, names = self.objective.probabilities, manifest.class_names
                self._draw(partial(self.monitor.explain, figures, ask, names))
        self.model.load_prompt_state_dict(trained)
        metrics["best_epoch"] = float(self.progress.best_epoch or 0)
        metrics["trainable_parameters"] = float(self._trainable_parameters())
        metrics["training_examples"] = float(len(self.splits["train"]))
        self.progress.final = metrics
        self.progress.costs = self.buffer.costs()
        # The metrics `val/...` are the curve over all epochs.
        logged = {name.replace("val/", "val_best/"): value for name, value in metrics.items()}
        logged |= {f"cost/{name}": value for name, value in self.progress.costs.items()}
        self.buffer.add(logged, self.progress.step)
        results = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
        self._save({**metrics, "epoch": self.epochs, "finished": 1}, results)

    def _draw(self, draw: Callable[[], None]) -> None:
        """Draws figures. A failure is recorded in the result, and does not stop the training."""
        try:
            draw()
        except Exception as problem:  # matplotlib and the libraries below it raise many types
            _LOG.exception("a figure could not be drawn")
            reason = " ".join(str(problem).split()) or type(problem).__name__
            self.progress.problems.append(f"a figure is missing: {reason[:300]}")

    def _draw_confusion(self, counts_CC: Tensor) -> None:
        if distributed.rank() == 0:
            # Here, because matplotlib takes a second to import.
            from stop_core.explain.training_figures import confusion, save_figure

            manifest = self.cache.manifest
            figure = confusion(counts_CC, manifest.class_words, f"{manifest.dataset}, test split")
            save_figure(figure, self.task.folder / FIGURES / "confusion.png")

    def _measure(self, split: str) -> Measured:
        clips = self.splits.get(split)
        return Measured({}, {}) if clips is None else self.objective.measure(clips)

    def _trainable_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.trainable().values())

    def _resume(self) -> None:
        """Resumes from the latest checkpoint, whether or not the session knows of it."""
        start = self.task.start
        # Only rank 0 looks: the view of another node on a shared folder may lag behind.
        own, states = None, distributed.gather_objects(self.contents.state)
        if distributed.rank() == 0:
            own = latest_checkpoint(self.task.folder, self.session.latest(), states)
        own = distributed.broadcast_object(own)
        if folder := own or (start.checkpoint if start and not start.fork else None):
            groups = self.trainer.optimizer.state_dict()["param_groups"] if self.trainer else []
            with fetched_folder(folder) as here:
                checkpoint = Checkpoint.load(here, groups)
            _refuse_unverified(folder, checkpoint.progress, states)
            self._restore(checkpoint)
            self.buffer.report(
                f"resuming {checkpoint.origin.run} after epoch {self.progress.epochs_done} of "
                f"{self.epochs}, step {self.progress.step}: {folder}"
            )
            if folder != self.session.latest():
                self.progress.final = None  # test again, so that this session reports a result
        elif start:
            with fetched_folder(start.checkpoint) as here:
                check_whole(here)
                _refuse_unverified(start.checkpoint, read_progress(here), ())
                self.model.load_prompt_state_dict(load_file(here / LAST_PROMPTS))
            self.best_prompts = self.model.prompt_state_dict()
            self.buffer.report(f"starting with the weights of {start.checkpoint}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_prompt_state_dict(checkpoint.prompts)
        self.best_prompts = checkpoint.best_prompts
        self.progress = checkpoint.progress
        if self.trainer:
            self.trainer.optimizer.load_state_dict(checkpoint.optimizer)
            self.trainer.average.load(checkpoint.average)
        self.buffer.restore(checkpoint.progress.records)
        if self.monitor:
            self.monitor.restore(checkpoint.behaviour)
        self._log_metrics()  # the interruption may have come before they were logged

    def _save(self, metrics: dict[str, float], results: pd.DataFrame | None = None) -> None:
        """Reports from every rank; rank 0 adds the checkpoint."""
        # Damaged data raises here. Data that is not verified yet, in the first epoch, is recorded.
        own = "" if self.contents.is_verified() else self.contents.state
        self.progress.unverified = sorted(set(distributed.gather_objects(own)) - {""})

        def write(folder: Path) -> None:
            if results is not None:
                results.to_parquet(folder / PREDICTIONS, index=False)
                self.tower.save(folder / TOWER)
            self.progress.records = self.buffer.state()
            run_id = self.tracked.run_id if self.tracked else ""
            trainer = self.trainer
            Checkpoint(
                progress=self.progress,
                origin=replace(self.task.origin, mlflow_run_id=run_id),
                prompts=self.model.prompt_state_dict(),
                best_prompts=self.best_prompts,
                average=trainer.average.average if trainer else {},
                behaviour=self.monitor.state() if self.monitor else {},
                optimizer=trainer.optimizer.state_dict() if trainer else {"state": {}},
            ).save(folder)

        self.session.report(metrics, write if distributed.rank() == 0 else None)
        self._saved = time.monotonic()
        self._log_metrics()

    def _log_metrics(self) -> None:
        """Sends the metrics of the last checkpoint to the tracking store, in the background.

        Metrics of unverified data are not sent: the next checkpoint contains them as well.
        """
        if self.progress.unverified:
            return
        points = self.buffer.take()
        if self.tracked and self.courier:
            self.tracked.log_points(points)
            self.courier.call()


def _refuse_unverified(
    checkpoint: StoragePath, progress: RunProgress, states: Collection[str]
) -> None:
    if not progress.may_resume(states):
        raise ChangedDataError(
            f"{checkpoint} was trained on files of a cache that had not been verified then and "
            "have changed since: train from the start, or from another checkpoint"
        )
