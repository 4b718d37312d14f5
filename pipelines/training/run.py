"""One training from the outside: checked, named, tracked, run by Ray Train, remembered.

A run's name is its identity (data, method, configuration, seed). Running it again after a kill
goes on from its last checkpoint, in the same MLflow run; running it again when it is done gives
the remembered result. MLflow is told through an outbox, so that its absence ends nothing.
"""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from stop_core.cache.manifest import Manifest
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.atomic import appearing
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath
from stop_core.storage.private import without_password
from stop_core.trained_model.files import (
    FILES,
    MODEL,
    TOWER,
    ModelRecord,
    Provenance,
    TowerFacts,
    label_classes,
    versions,
)
from stop_core.trained_model.frames import preprocessing_of_cache
from stop_core.training.run_state import Origin, read_origin, read_progress

from ..cli.console import say
from ..cli.errors import RunError
from ..cli.folder_lock import alone_in
from ..cli.output import results_folder
from ..cli.store_problem import explain_store_problem
from ..cluster.resources import Resources
from ..tracking.environment import git_commit
from ..tracking.queued_run import QueuedRun, UnnamedStoreError
from ..tracking.store import open_experiment, tracking_uri
from .check_fit import check_fit
from .failures import FAILURE_TAG, ends_with_reason
from .launch import Watch, run_workers, train_in_process
from .progress_file import ProgressFile
from .result import RESULT_VERSION, TrainingResult
from .start_from import StartFrom
from .task import ALONE, FIGURES, PREDICTIONS, WorkerTask

_SECONDS_FOR_A_LOST_STORE = 10.0


class TrainingRun:
    """A training that may not have begun, may be half done, or may be finished."""

    def __init__(
        self,
        config: ExperimentConfig,
        cache: StoragePath,
        output: Path,
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
        self.config = config = config.for_dataset(self.manifest.dataset)
        check_fit(config, self.manifest, ("train", "test") if test else ("train", "val"))
        # What decides the numbers: settings, data, weights, and this code's own arithmetic.
        weights = weights_fingerprint(config.tower, config.pretrained)
        hashes = f"{config.hash}-{self.manifest.data_hash[:8]}-{weights}v{RESULT_VERSION}"
        kind = "" if test else "-untested"  # a trial of a sweep must not see the test split
        kind += f"-{sweep}" if sweep else ""  # and what a sweep stops early is no other's
        self.start = start
        kind += start.suffix if start else ""
        rest = f"{config.method}-seed{config.seed}-{hashes}{kind}"
        dataset, fold = self.manifest.dataset, self.manifest.fold
        runs = self.output / "runs"
        self.name = results_folder(runs, dataset, fold, rest).name
        self.folder = inside(runs, self.name)
        if start:
            start.check(self.origin())

    def origin(self) -> Origin:
        """What its checkpoints are marked with."""
        return Origin(
            run=self.name,
            config_hash=self.config.hash,
            data_hash=self.manifest.data_hash,
            mlflow_run_id=self.tracked.run_id,
            config=self.config.parameters(),
        )

    def remembered(self) -> TrainingResult | None:
        """The result, if this very training has been done before."""
        result = TrainingResult.load(self.folder)
        # MLflow may have been away when the training ended.
        return result and replace(result, run_id=result.run_id or self.tracked.run_id)

    def train(
        self,
        resources: Resources,
        parent: str | None = None,
        label: str | None = None,
        *,
        here: bool = False,
        watch: Watch = Watch(),  # noqa: B008 - it is frozen
    ) -> TrainingResult:
        """Trains, or goes on with it, and remembers the result.

        Args:
            resources: where to train.
            parent: MLflow run id of the sweep or table that this training belongs to.
            label: name of the MLflow run; default: method and seed.
            here: train in this process instead of starting workers of Ray Train: for a Ray task
                that has the resources of the one worker already.
            watch: whoever follows it.

        Raises:
            RunError: if the training fails; the message gives the reason in one sentence.
        """
        if result := self.remembered():
            return result
        if parent is None and not self.tracked.run_id:
            # A store that is wrong from the start is refused; one that goes away later is not.
            open_experiment(self.output, self.manifest.dataset)
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder):
            # Whoever held the folder may have finished this very training meanwhile.
            return self.remembered() or self._train(resources, parent, label, here, watch)

    def _train(
        self,
        resources: Resources,
        parent: str | None,
        label: str | None,
        here: bool,
        watch: Watch,
    ) -> TrainingResult:
        from .checkpoints import set_damage_aside

        with ends_with_reason(self.tracked, self.name):
            self.progress_file.path.unlink(missing_ok=True)  # a killed process left it
            set_damage_aside(self.folder)
            self._track(resources, parent, label)
            task = self._task(resources)
            checkpoint = (
                train_in_process(task, inside(self.folder, ALONE), watch)
                if here
                else run_workers(task, resources, watch)
            )
            result = self._keep(checkpoint)
        return result

    @property
    def tracked(self) -> QueuedRun:
        """The MLflow run of this training."""
        return QueuedRun(self.folder, tracking_uri(self.output))

    @property
    def progress_file(self) -> ProgressFile:
        """Where the worker tells how far it is."""
        return ProgressFile(self.folder / "progress.json")

    def _track(self, resources: Resources, parent: str | None, label: str | None) -> None:
        """Begins the MLflow run of this training, or goes on with it."""
        tracked = self.tracked
        if self.start and not self.start.fork:
            tracked.go_on_with(self._mlflow_run_of(self.start))
        tracked.open(
            self.manifest.dataset,
            label or f"{self.config.method} seed {self.config.seed}",
            parent=parent,
            tags={
                "kind": "training",
                "method": self.config.method,
                "dataset": self.manifest.dataset,
                "fold": str(self.manifest.fold),
                "config_hash": self.config.hash,
                "data_hash": self.manifest.data_hash,
            },
        )
        tracked.log_params({**self.config.parameters(), "dataset": self.manifest.dataset})
        tracked.log_dataset(self.manifest.dataset, self.manifest.data_hash)
        tracked.set_tags(asdict(resources))
        if self.start and self.start.fork:
            tracked.set_tags({"forked_from": self.start.checkpoint})
        problem = tracked.deliver()
        if isinstance(problem, UnnamedStoreError):
            say(f"{problem}. Until then they wait in {tracked.outbox.folder}")
        elif tracked.store != without_password(tracked.uri):
            say(f"the records of this training go to {tracked.store}, which has its MLflow run")

    @staticmethod
    def _mlflow_run_of(start: StartFrom) -> str:
        return read_origin(start.checkpoint).mlflow_run_id

    def _task(self, resources: Resources) -> WorkerTask:
        return WorkerTask(
            config=self.config,
            cache=self.cache,
            folder=self.folder,
            tracking_uri=self.tracked.uri,
            progress_file=self.progress_file.path,
            threads=max(1, int(resources.cpus_per_worker)),
            gpu=resources.gpus_per_worker > 0,
            test=self.test,
            start=self.start.checkpoint if self.start else None,
            fork=self.start is not None and self.start.fork,
            origin=self.origin(),
            micro_batch=resources.micro_batch,
            checkpoint_activations=resources.checkpoint_activations,
            compile=resources.compile,
            checkpoint_minutes=resources.checkpoint_minutes,
            checkpoint_every_steps=resources.checkpoint_every_steps,
        )

    def _keep(self, checkpoint: Path) -> TrainingResult:
        """Copies what matters out of the last checkpoint; the result file comes last."""
        from stop_core.trained_model.model import keep_model
        from stop_core.training.checkpoint import BEST_PROMPTS, check_whole

        check_whole(checkpoint)
        progress = read_progress(checkpoint)
        metrics = progress.final
        if metrics is None:
            raise RunError(f"the training {self.name} ended before it was tested; run it again")
        with appearing(self.folder / PREDICTIONS) as staging:
            shutil.copyfile(checkpoint / PREDICTIONS, staging)
        record = self._model_record(metrics, TowerFacts.load(checkpoint / TOWER))
        keep_model(inside(self.folder, MODEL), record, checkpoint / BEST_PROMPTS)
        tracked = self.tracked
        tracked.log_file(PREDICTIONS)
        for name in FILES:
            tracked.log_file(f"{MODEL}/{name}", MODEL)
        for figure in sorted(inside(self.folder, FIGURES).glob("*.png")):
            tracked.log_file(f"{FIGURES}/{figure.name}", FIGURES)
        if progress.problems:
            tracked.set_tags({"problems": "; ".join(progress.problems)})
        tracked.remove_tags(FAILURE_TAG)
        tracked.finish()
        _deliver_last(tracked)
        result = TrainingResult(
            name=self.name,
            method=self.config.method,
            dataset=self.manifest.dataset,
            fold=self.manifest.fold,
            seed=self.config.seed,
            metrics=metrics,
            config_hash=self.config.hash,
            data_hash=self.manifest.data_hash,
            git_commit=git_commit(),
            run_id=tracked.run_id,
            folder=str(self.folder),
            curve=progress.curve,
            costs=progress.costs,
            problems=progress.problems,
        )
        result.save()
        return result

    def _model_record(self, metrics: dict[str, float], tower: TowerFacts) -> ModelRecord:
        manifest, config = self.manifest, self.config
        return ModelRecord(
            config=config,
            classes=label_classes(manifest.class_names, config.templates),
            preprocessing=preprocessing_of_cache(
                (manifest.frames, manifest.size, manifest.config.crop),
                (config.frames, tower.size),
                tower.mean,
                tower.std,
            ),
            provenance=Provenance(
                tower_fingerprint=tower.fingerprint,
                run=self.name,
                dataset=manifest.dataset,
                fold=manifest.fold,
                metrics=metrics,
                config_hash=config.hash,
                data_hash=manifest.data_hash,
                git_commit=git_commit(),
                mlflow_run_id=self.tracked.run_id,
                versions=versions(),
            ),
        )


def _deliver_last(tracked: QueuedRun) -> None:
    """Waits a little for a store that is away, and says so if it stays away."""
    problem = tracked.deliver(_SECONDS_FOR_A_LOST_STORE)
    if problem and (waiting := tracked.outbox.waiting()):
        # Another process delivers them, or nobody may.
        is_told = isinstance(problem, BlockingIOError | UnnamedStoreError)
        reason = str(problem) if is_told else explain_store_problem(tracked.store, problem)
        say(
            f"{reason}. {len(waiting)} records wait in "
            f"{tracked.outbox.folder}, and the next training, table or sweep with the same "
            "--output delivers them"
        )
    if refused := tracked.outbox.refused():
        say(f"the MLflow store has refused {len(refused)} records; see {refused[0].parent}")
