"""What a training worker does: train epoch by epoch, keep the best by validation, test once.

A worker that is killed goes on after its last reported epoch, and ends with the same weights.
"""

import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from pipelines.progress import ProgressFile
from pipelines.tracking import TrackedRun
from pipelines.training_worker import PREDICTIONS, WorkerTask
from pipelines.worker_session import Session
from stop_core.cache import CachedClips, FrameCache
from stop_core.checkpoint import Checkpoint, Progress
from stop_core.clip import load_clip
from stop_core.distributed import copy_from_first, rank
from stop_core.methods import build_method
from stop_core.metrics import recognition_metrics
from stop_core.text import ClassTexts
from stop_core.text_templates import class_sentences
from stop_core.training import Step, Trainer, predict, seed_weights

CHOSEN_BY = "top1"  # the validation measure that chooses the epoch
_STEPS_BETWEEN_RECORDS = 20


class WorkerRun:
    """The state of one worker."""

    def __init__(self, task: WorkerTask, session: Session) -> None:
        torch.set_num_threads(task.threads)
        self.config = task.config
        self.test = task.test
        self.session = session
        self.cache = FrameCache(task.cache)
        seed_weights(self.config.seed)
        clip = load_clip(self.config.tower, self.config.pretrained)
        manifest = self.cache.manifest
        self.model = build_method(self.config, clip, len(manifest.class_names)).to(
            session.device(task.gpu)
        )
        sentences = class_sentences(self.config.templates, manifest.class_words)
        self.texts = ClassTexts(self.model, sentences)
        self.trainer = self._make_trainer()
        self.progress = Progress()
        self.best_prompts = self.model.prompt_state_dict()
        self.tracked = TrackedRun(task.tracking_uri, task.run_id) if rank() == 0 else None
        self.progress_file = ProgressFile(task.progress_file) if rank() == 0 else None
        self._resume()
        copy_from_first(self.model.trainable().values())

    def run(self) -> None:
        """Trains what is left to train, then tests the chosen epoch and reports it all."""
        if self.trainer is not None:
            for epoch in range(self.progress.epochs_done, self.config.epochs):
                self._run_epoch(epoch, self.trainer)
        self.model.load_prompt_state_dict(self.best_prompts)
        self._finish()

    def _run_epoch(self, epoch: int, trainer: Trainer) -> None:
        recorder = _StepRecorder(self.tracked, self.progress_file, trainer)
        started = time.perf_counter()
        trainer.train_epoch(epoch, recorder)
        seconds = time.perf_counter() - started
        metrics = {"train/clips_per_second": len(trainer.clips) / seconds}
        metrics.update(self._measure("val")[0])
        self._keep_best(epoch, metrics)
        self.progress.epochs_done = epoch + 1
        self._log({**metrics, "epoch": epoch + 1}, (epoch + 1) * trainer.steps_per_epoch)
        # `epoch` is what schedulers of a sweep count by; it is the same after a restart.
        self._report({**metrics, "epoch": epoch + 1, "finished": 0})

    def _keep_best(self, epoch: int, metrics: dict[str, float]) -> None:
        """Keeps this epoch if validation is better than before; without validation, always."""
        chosen_by = f"val/{CHOSEN_BY}"
        best = self.progress.best_metrics.get(chosen_by, -1.0)
        if metrics.get(chosen_by, 2.0) > best:
            self.best_prompts = self.model.prompt_state_dict()
            self.progress.best_epoch = epoch + 1
            self.progress.best_metrics = {k: v for k, v in metrics.items() if k.startswith("val/")}

    def _finish(self) -> None:
        """Evaluates validation and, this once, test with the chosen weights."""
        val_metrics, val_rows = self._measure("val")
        test_metrics, test_rows = self._measure("test") if self.test else ({}, pd.DataFrame())
        metrics = {
            **val_metrics,
            **test_metrics,
            "best_epoch": float(self.progress.best_epoch or 0),
            "trainable_parameters": float(sum(p.numel() for p in self.model.trainable().values())),
        }
        steps = self.trainer.total_steps if self.trainer else 0
        # Under a name of its own: `val/...` is the curve over all epochs.
        self._log({k.replace("val/", "val_best/"): v for k, v in metrics.items()}, steps)
        predictions = pd.concat([val_rows, test_rows], ignore_index=True)
        self._report({**metrics, "epoch": self.config.epochs, "finished": 1}, predictions)

    def _measure(self, split: str) -> tuple[dict[str, float], pd.DataFrame]:
        """Metrics of a split and a row a clip; both empty where the split has no clips."""
        clips = self._clips(split)
        if clips is None:
            return {}, pd.DataFrame()
        logits_MN = predict(self.model, clips, self.texts)
        metrics = recognition_metrics(logits_MN, clips.labels)
        rows = _prediction_rows(split, clips, logits_MN)
        return {f"{split}/{name}": value for name, value in metrics.items()}, rows

    def _clips(self, split: str) -> CachedClips | None:
        if not self.cache.manifest.counts.get(split):
            return None
        return self.cache.split(split)

    def _make_trainer(self) -> Trainer | None:
        """None for a method that has nothing to train."""
        if not self.model.trainable() or self.config.epochs == 0:
            return None
        return Trainer(self.model, self.config, self.cache.split("train"), self.texts)

    def _resume(self) -> None:
        with self.session.checkpoint() as folder:
            if folder is None or self.trainer is None:
                return
            groups = self.trainer.optimizer.state_dict()["param_groups"]
            checkpoint = Checkpoint.load(folder, groups)
        self.model.load_prompt_state_dict(checkpoint.prompts)
        self.trainer.optimizer.load_state_dict(checkpoint.optimizer)
        self.best_prompts = checkpoint.best_prompts
        self.progress = checkpoint.progress

    def _report(self, metrics: dict[str, float], predictions: pd.DataFrame | None = None) -> None:
        """Every rank reports; rank 0 brings the checkpoint."""

        def write(folder: Path) -> None:
            optimizer = self.trainer.optimizer.state_dict() if self.trainer else {"state": {}}
            prompts = self.model.prompt_state_dict()
            Checkpoint(self.progress, prompts, self.best_prompts, optimizer).save(folder)
            if predictions is not None:
                predictions.to_parquet(folder / PREDICTIONS, index=False)

        self.session.report(metrics, write if rank() == 0 else None)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if self.tracked:
            self.tracked.log_metrics(metrics, step)


class _StepRecorder:
    """Records training steps in MLflow and the progress file, a few at a time."""

    def __init__(
        self, tracked: TrackedRun | None, progress_file: ProgressFile | None, trainer: Trainer
    ) -> None:
        self.tracked = tracked
        self.progress_file = progress_file
        self.trainer = trainer
        self.recent: list[Step] = []
        self.points: list[tuple[int, dict[str, float]]] = []

    def __call__(self, step: Step) -> None:
        self.recent.append(step)
        last_of_epoch = (step.step + 1) % self.trainer.steps_per_epoch == 0
        if len(self.recent) == _STEPS_BETWEEN_RECORDS or last_of_epoch:
            self._record(step)
        if last_of_epoch and self.tracked:
            self.tracked.log_points(self.points)

    def _record(self, step: Step) -> None:
        """Adds the means over the recent steps as one point."""
        count = len(self.recent)
        point = {
            "train/loss": sum(s.loss for s in self.recent) / count,
            "train/gradient_norm": sum(s.gradient_norm for s in self.recent) / count,
            "train/step_seconds": sum(s.seconds for s in self.recent) / count,
            "train/learning_rate": step.learning_rate,
        }
        self.points.append((step.step + 1, point))
        self.recent.clear()
        if self.progress_file:
            self.progress_file.write(step.step + 1, self.trainer.total_steps, point["train/loss"])


def _prediction_rows(split: str, clips: CachedClips, logits_MN: Tensor) -> pd.DataFrame:
    probabilities_MN = logits_MN.softmax(-1)
    probability_M, predicted_M = probabilities_MN.max(-1)
    true_probability_M = probabilities_MN.gather(1, clips.labels[:, None])[:, 0]
    return pd.DataFrame(
        {
            "split": split,
            "video_id": clips.video_ids,
            "label": clips.labels.numpy(),
            "predicted": predicted_M.numpy(),
            "probability": probability_M.numpy(),
            "label_probability": true_probability_M.numpy(),
        }
    )
