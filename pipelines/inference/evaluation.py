"""One evaluation of a trained model on a cache: named by its identity, resumed, stored, tracked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from stop_core.cache import FrameCache
from stop_core.cache.manifest import Manifest
from stop_core.cache.views import parse_views, several_views
from stop_core.datasets import Split
from stop_core.storage.atomic import (
    appearing,
    fetched_folder,
    hash_file,
    hash_json,
    remove_folder,
)
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath
from stop_core.trained_model.files import (
    PROMPTS,
    read_record,
    refuse_other_classes,
    templates_for,
)

from ..cli.console import say, warn
from ..cli.folders import results_folder
from ..cluster.resources import Resources
from ..cluster.session import start_ray
from ..tracking.direct_run import now_ms
from ..tracking.queued_run import deliver_at_start
from ..training.failures import failures_recorded, root_cause
from ..training.result import RESULT_VERSION, ResumableRun, TrainingResult
from ..training.task import PREDICTIONS
from .model_choice import ModelChoice

if TYPE_CHECKING:  # it takes seconds to import, and --help does not need it
    import ray

_PARTS = "parts"


@dataclass(frozen=True)
class EvaluationOptions:
    """The options that change the result of an evaluation."""

    split: Split = "test"
    """Split of the cache to evaluate."""
    views: str = "1x1"
    """Temporal clips x spatial crops of every video (1 or 3 crops), such as 4x3: the probabilities
    of all views are averaged. The cache needs room for them."""
    frames: int | None = None
    """Frames of each temporal clip, for a model that accepts other numbers than in its training
    (default: as in the training)."""
    rerank: Literal["none", "dsl", "qb-norm"] = "none"
    """For retrieval, re-ranked figures in addition: dsl (uses the other queries of the test set) or
    qb-norm (uses the captions of the training split)."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for a class, or the name of a set (default: those of the training for its
    own dataset, and the default set of another dataset)."""

    def __post_init__(self) -> None:
        parse_views(self.views)
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")

    def check(self, manifest: Manifest) -> None:
        """Raises ValueError if a cache has no clips to evaluate, or none for the re-ranking."""
        splits = {self.split, "train"} if self.rerank == "qb-norm" else {self.split}
        if absent := sorted(split for split in splits if not manifest.counts.get(split)):
            raise ValueError(
                f"the cache of {manifest.dataset} has no clips in its {absent[0]} split: "
                f"preprocess with --splits {' '.join(sorted(splits))}, or give other options"
            )
        if self.rerank != "none" and manifest.task != "retrieval":
            raise ValueError(
                f"rerank is {self.rerank}, which is for retrieval, and {manifest.dataset} has "
                "classes; leave it out"
            )


class Evaluation(ResumableRun):
    """An evaluation that has not started yet, is unfinished, or is finished.

    `model` is a value of `ModelChoice.found` with a checkpoint. The folder is below the
    `evaluations` of `output`. Raises FileNotFoundError if there is no model, ValueError if the
    model or the options do not suit the cache.
    """

    def __init__(
        self,
        model: ModelChoice,
        cache: StoragePath,
        output: StoragePath,
        options: EvaluationOptions,
    ) -> None:
        self.model = model
        self.cache, self.output, self.options = cache.resolve(), output.resolve(), options
        self.manifest = manifest = Manifest.load(self.cache)
        self.folder_of_model = model.folder
        with fetched_folder(self.folder_of_model) as here:
            self.record = record = read_record(here)
        refuse_other_classes(record, manifest)
        options.check(manifest)
        self.templates = templates_for(record, manifest, options.templates)
        how = record.preprocessing
        if manifest.config.sampling != how.sampling:
            raise ValueError(
                f"the frames of the cache {self.cache} are sampled as {manifest.config.sampling}, "
                f"and the model was trained on {how.sampling}: preprocess with --sampling "
                f"{how.sampling} into another --cache"
            )
        frames = options.frames or how.frames
        self.views = several_views(options.views, frames, how.size, manifest.config)
        self.config = config = record.config
        identity = [
            hash_file(self.folder_of_model / PROMPTS),
            *(config.hash, config.seed, record.provenance.tower_fingerprint),
            *(frames, how.size, manifest.data_hash, RESULT_VERSION),
            *(options.split, options.views, options.rerank, self.templates),
        ]
        rest = f"{config.method}-seed{config.seed}-{options.split}-{options.views}"
        rest += "" if options.rerank == "none" else f"-{options.rerank}"
        rest += "" if frames == how.frames else f"-{frames}-frames"
        parent = self.output / "evaluations"
        rest += f"-{hash_json(identity)[:12]}"
        self.name = results_folder(parent, manifest.dataset, manifest.fold, rest).name
        self.folder = inside(parent, self.name)

    def remark(self) -> str:
        """Returns a sentence if the frames have another size than in the training, or ""."""
        found, wanted = self.manifest.config.size, self.record.preprocessing.decoded[1]
        if found == wanted:
            return ""
        return f"the short side of the cached frames is {found}, and of the training's {wanted}"

    @property
    def clips(self) -> int:
        """Number of clips, counted once for every view."""
        return self.manifest.counts[self.options.split] * len(self.views)

    def run(
        self,
        resources: Resources = Resources(),  # noqa: B008 - it is frozen
        on_part: Callable[[int], None] = lambda clips: None,
    ) -> TrainingResult:
        """Evaluates, or resumes, and stores the result; returns a stored result at once.

        The rounding of the outputs depends on the threads of the one worker. `on_part` is called
        with the number of clips of every finished part.
        """
        if result := self.remembered():
            return result
        self.open_store()
        return self.once(lambda: self._run(resources, on_part))

    def _run(self, resources: Resources, on_part: Callable[[int], None]) -> TrainingResult:
        import pandas as pd
        import torch

        from stop_core.trained_model.evaluate import evaluate

        torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
        options, tracked = self.options, self.tracked
        with failures_recorded(tracked, f"the evaluation {self.name}"):
            self._track()
            cache = FrameCache(self.cache, resources.local_cache_bytes)
            bank = {"train"} if options.rerank == "qb-norm" else set()
            cache.verify({options.split, *bank})
            parts = inside(self.folder, _PARTS)
            parts.mkdir(exist_ok=True)
            measured = evaluate(
                self.model.load(resources.gpus_per_worker > 0),
                cache,
                options.split,
                self.views,
                parts,
                templates=self.templates,
                rerank=options.rerank,
                on_part=on_part,
            )
            rows = pd.DataFrame({"split": options.split, **measured.rows})
            with appearing(self.folder / PREDICTIONS) as staging:
                rows.to_parquet(staging, index=False)
            metrics = {f"{options.split}/{name}": v for name, v in measured.metrics.items()}
            tracked.log_file(PREDICTIONS)
            tracked.log_points([(0, now_ms(), metrics)])
            trained = self.record.provenance.metrics
            metrics |= {k: v for k, v in trained.items() if k == "trainable_parameters"}
            result = self.finish(metrics)
        remove_folder(parts)
        return result

    def _track(self) -> None:
        manifest, options, config = self.manifest, self.options, self.config
        trained = self.record.provenance
        tags = {
            "trained_on": trained.dataset,
            "trained_on_data_hash": trained.data_hash,
            "training_run": trained.mlflow_run_id,
            "checkpoint": str(self.folder_of_model),
            **self.model.of_hub,
        }
        name = f"{config.method} seed {config.seed}, {options.split} {options.views}"
        tracked = self.open_run("evaluation", name, None, tags)
        own = {"split": options.split, "views": options.views, "rerank": options.rerank}
        own |= {"dataset": manifest.dataset, "evaluation_templates": str(list(self.templates))}
        own |= {"evaluation_frames": str(self.views[0].frames)}
        tracked.log_params({**config.parameters(), **own})
        tracked.log_dataset(manifest.dataset, manifest.data_hash, self.cache, "testing")
        if trained.data_hash not in ("", manifest.data_hash):
            tracked.log_dataset(trained.dataset, trained.data_hash)
        deliver_at_start(tracked)


def evaluate_trained(
    trained: Sequence[TrainingResult | str],
    caches: Mapping[str, Sequence[StoragePath]],
    output: StoragePath,
    options: EvaluationOptions,
    resources: Resources,
) -> list[TrainingResult | str]:
    """Tests each trained model on its caches; reasons of failures are returned as they are.

    `caches` are by the name of a training.
    """
    tests = [(one, cache) for one in trained if not isinstance(one, str)
             for cache in caches[one.name]]  # fmt: skip
    evaluations = [
        Evaluation(ModelChoice(one.model), cache, output, options) for one, cache in tests
    ]
    models = {one.folder_of_model for one in evaluations}
    start_ray(output, *{one.cache for one in evaluations}, *models, records=True)
    outcomes: list[TrainingResult | str] = [one for one in trained if isinstance(one, str)]
    for (one, _), outcome in zip(tests, evaluate_all(evaluations, resources), strict=True):
        if not isinstance(outcome, str) and outcome.data_hash == one.data_hash:
            # Validation chose the epoch: it is not measured again, with other views or re-ranked.
            others = {k: v for k, v in one.metrics.items() if not k.startswith("test/")}
            outcome = replace(outcome, metrics=others | outcome.metrics, costs=one.costs)
        outcomes.append(outcome)
    return outcomes


def evaluate_all(
    evaluations: Sequence[Evaluation], resources: Resources
) -> list[TrainingResult | str]:
    """Runs evaluations in Ray tasks; returns each one's result, or the reason of its failure."""
    import ray.exceptions

    outcomes: list[TrainingResult | str] = []
    started = [one.remembered() or _submit(one, resources) for one in evaluations]
    for evaluation, one in zip(evaluations, started, strict=True):
        try:
            outcomes.append(one if isinstance(one, TrainingResult) else ray.get(one))
        except ray.exceptions.RayError as problem:
            failed = f"the evaluation {evaluation.name} failed: "
            # The worker says it itself, unless it was killed.
            outcomes.append(root_cause(problem).removeprefix(failed))
            warn(f"{failed}{outcomes[-1]}")
        else:
            say(f"evaluated {len(outcomes)} of {len(evaluations)}: {evaluation.name}")
    return outcomes


def _submit(evaluation: Evaluation, resources: Resources) -> "ray.ObjectRef[TrainingResult]":
    import ray

    task: Any = ray.remote(Evaluation.run)  # its types know functions only
    run = task.options(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        max_retries=resources.restarts,
    )
    reference: ray.ObjectRef[TrainingResult] = run.remote(evaluation, resources)
    return reference
