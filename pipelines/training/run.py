"""The driver's side of one training: checks it, names it, tracks it, starts it, stores its result.

The name of a training is its identity (data, method, configuration, seed). Run again after an
interruption, it resumes from its last checkpoint, in the same MLflow run; run again when it is
finished, it returns the stored result. Records for MLflow go through an outbox, so an outage of the
tracking store does not stop a training.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from stop_core.cache.manifest import Manifest
from stop_core.datasets.protocols import base_labels
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.atomic import appearing, fetched_folder, write_whole
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath, matches
from stop_core.trained_model import files
from stop_core.trained_model.frames import preprocessing_of_cache
from stop_core.training.run_state import Origin, read_origin, read_progress

from ..cli.console import Paused, RunError
from ..cli.folders import results_folder
from ..cluster.resources import Resources
from ..tracking.environment import git_commit
from ..tracking.queued_run import deliver_at_start
from .check_fit import check_fit
from .checkpoints import CHECKPOINTS, move_damaged_aside
from .estimate import refuse_without_memory
from .failures import failures_recorded
from .launch import TrainingHooks, train_in_process, train_on_ray
from .progress_file import ProgressFile
from .result import RESULT_VERSION, ResumableRun, TrainingResult
from .task import FIGURES, PAUSE, PREDICTIONS, PROGRESS_FILE, StartFrom, WorkerTask

_NOTE = """The model that this training chose by validation, with its card (README.md).

`stop predict VIDEOS --run ID` predicts with it; ID is that of the source run.
`stop export --run ID --to mlflow --register NAME` registers it in the form that MLflow
serves, which these files do not have.
"""


class TrainingRun(ResumableRun):
    """A training, in a folder below the `runs` of `output`.

    A trial of a sweep has its id: only the same sweep reuses it, as it may have been stopped early.
    It does not `test`, at the end, on the test split. Raises ValueError if the experiment does not
    fit the cache, or `start`, the checkpoint to start from, is of another training.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        cache: StoragePath,
        output: StoragePath,
        *,
        test: bool = True,
        sweep: str = "",
        start: StartFrom | None = None,
    ) -> None:
        from stop_core.clip.pretrained import weights_fingerprint

        self.test = test
        self.cache = cache.resolve()
        self.output = output.resolve()
        self.manifest = Manifest.load(self.cache)
        config = config.for_dataset(self.manifest.dataset)
        if config.precision == "auto":  # no command has chosen a device: see `choose_devices`
            config = replace(config, precision="fp32")
        self.config = config
        self.start = start
        check_fit(config, self.manifest, ("train", "test") if test else ("train", "val"))
        # All that the numbers depend on: settings, data, weights, and the version of this code.
        weights = weights_fingerprint(config.tower, config.pretrained)
        hashes = f"{config.hash}-{self.manifest.data_hash[:8]}-{weights}v{RESULT_VERSION}"
        kind = "" if test else "-untested"
        kind += f"-{sweep}" if sweep else ""
        kind += start.suffix if start else ""
        rest = f"{config.method}-seed{config.seed}-{hashes}{kind}"
        runs = self.output / "runs"
        self.name = results_folder(runs, self.manifest.dataset, self.manifest.fold, rest).name
        self.folder = inside(runs, self.name)
        if start:
            start.check(self._origin())

    @property
    def progress_file(self) -> ProgressFile:
        """The file in which the worker reports its progress."""
        return ProgressFile(self.folder / PROGRESS_FILE)

    def train(
        self,
        resources: Resources,
        parent: str | None = None,
        label: str | None = None,
        *,
        in_process: bool = False,
        hooks: TrainingHooks = TrainingHooks(),  # noqa: B008 - it is frozen
    ) -> TrainingResult:
        """Trains or resumes, and stores the result; returns a stored result at once.

        `parent` is the MLflow run id of the sweep or table that this training belongs to, and
        `label` the name of its own run (default: method and seed). With `in_process`, it runs
        without Ray Train, in this process, which must have the resources of the one worker.
        """

        def work() -> TrainingResult:
            with failures_recorded(self.tracked, f"the training {self.name}"):
                refuse_without_memory(self.config, self.manifest.config.frames, resources)
                self.progress_file.path.unlink(missing_ok=True)  # left by an interruption
                (self.folder / PAUSE).unlink(missing_ok=True)
                move_damaged_aside(self.folder)
                self._track(resources, parent, label)
                task = self._task(resources)
                if in_process:
                    checkpoints = inside(self.folder, CHECKPOINTS)
                    return self._store(train_in_process(task, checkpoints, hooks))
                return self._store(train_on_ray(task, resources, hooks))

        if result := self.remembered():
            return result
        if parent is None:
            self.open_store()
        return self.once(work)

    def pause(self) -> None:
        """Asks the workers to save the training after the current step or epoch, and to end."""
        write_whole(self.folder / PAUSE, "")

    def _track(self, resources: Resources, parent: str | None, label: str | None) -> None:
        if self.start and not self.start.fork:
            self.tracked.adopt(read_origin(self.start.checkpoint).mlflow_run_id)
        name = label or f"{self.config.method} seed {self.config.seed}"
        tracked = self.open_run("training", name, parent, {})
        tracked.log_params({**self.config.parameters(), "dataset": self.manifest.dataset})
        tracked.log_dataset(self.manifest.dataset, self.manifest.data_hash, self.cache)
        tracked.set_tags(asdict(resources))
        if self.start and self.start.fork:
            tracked.set_tags({"forked_from": self.start.checkpoint})
        deliver_at_start(tracked)

    def _origin(self) -> Origin:
        return Origin(
            run=self.name,
            config_hash=self.config.hash,
            data_hash=self.manifest.data_hash,
            mlflow_run_id=self.tracked.run_id,
            config=self.config.parameters(),
        )

    def _task(self, resources: Resources) -> WorkerTask:
        return WorkerTask(
            config=self.config,
            cache=self.cache,
            folder=self.folder,
            tracking_uri=self.tracked.uri,
            resources=resources,
            test=self.test,
            start=self.start,
            origin=self._origin(),
        )

    def _store(self, checkpoint: StoragePath) -> TrainingResult:
        from stop_core.trained_model.model import keep_model
        from stop_core.training.checkpoint import BEST_PROMPTS, check_whole

        with fetched_folder(checkpoint) as here:
            check_whole(here)
            progress = read_progress(here)
            metrics = progress.final
            if metrics is None:
                if (self.folder / PAUSE).exists():
                    raise Paused(
                        f"the training {self.name} is saved after step {progress.step}; run the "
                        "same command again to resume"
                    )
                raise RunError(f"the training {self.name} ended before it was tested; run it again")
            with appearing(self.folder / PREDICTIONS) as staging:
                shutil.copyfile(here / PREDICTIONS, staging)
            record = self._model_record(metrics, here / files.TOWER)
            keep_model(inside(self.folder, files.MODEL), record, here / BEST_PROMPTS)
        tracked = self.tracked
        tracked.log_file(PREDICTIONS)
        if self.test:  # the weights of a sweep's trials stay in their folders
            tracked.log_model(files.MODEL, [f"{files.MODEL}/{name}" for name in files.FILES], _NOTE)
        for figure in matches(inside(self.folder, FIGURES), "*.png"):
            tracked.log_file(f"{FIGURES}/{figure.name}", FIGURES)
        if progress.problems:
            tracked.set_tags({"problems": "; ".join(progress.problems)})
        return self.finish(
            metrics, curve=progress.curve, costs=progress.costs, problems=progress.problems
        )

    def _model_record(self, metrics: dict[str, float], tower_file: Path) -> files.ModelRecord:
        manifest, config, tower = self.manifest, self.config, files.TowerFacts.load(tower_file)
        names: Sequence[str] = manifest.class_names
        if config.protocol.classes != "all":
            names = [names[label] for label in base_labels(names, config.protocol)]
        shape = (config.frames, tower.size)
        return files.ModelRecord(
            config=config,
            classes=files.label_classes(names, config.templates),
            preprocessing=preprocessing_of_cache(manifest.config, shape, tower.mean, tower.std),
            provenance=files.Provenance(
                tower_fingerprint=tower.fingerprint,
                run=self.name,
                dataset=manifest.dataset,
                fold=manifest.fold,
                metrics=metrics,
                config_hash=config.hash,
                data_hash=manifest.data_hash,
                git_commit=git_commit(),
                mlflow_run_id=self.tracked.run_id,
                versions=files.versions(),
            ),
        )
