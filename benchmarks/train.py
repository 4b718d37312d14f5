"""The rate of a whole training against its bare step, and what its start-up takes.

Both are measured in one worker of Ray Train, turn by turn, on the same model and batches:

    bare    forward, backward and optimiser on clips that lie in memory, and nothing else
    whole   an epoch as `pipelines/train.py` runs it: clips read from the cache, steps recorded,
            prompts observed, a checkpoint reported to Ray Train, records taken to an SQLite store

Validation is left out of both: the cache holds training clips alone.

    python benchmarks/train.py
    python benchmarks/train.py --tower ViT-B-32-quickgelu --clips 24 --frames 12 --batch-size 4
"""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass(frozen=True)
class TrainBenchmark:
    """Time whole epochs of a training worker against bare steps, turn by turn."""

    tower: str = "tiny"
    """Any open_clip ViT, with random weights; tiny has its own."""
    clips: int = 2048
    """Clips of an epoch, a multiple of 8."""
    frames: int = 6
    """Frames of a clip."""
    batch_size: int = 16
    """Clips of a step."""
    rounds: int = 3
    """Timed epochs of each."""


def main(options: TrainBenchmark) -> None:
    """Prints the start-up by its parts, then the two rates and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what it imports is not to be missing from the start-up below.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            cache = pool.submit(_make_cache, options, folder).result()
        laps = _Laps()
        from pipelines.training_run import Resources, TrainingRun

        laps.end("driver: imports")
        from pipelines.ray_session import start_ray

        start_ray()
        laps.end("driver: Ray")
        run = TrainingRun(_experiment(options), cache, folder)
        laps.end("driver: look at cache and tower (imports torch and open_clip)")
        run._track(Resources(), None, None)
        laps.end("driver: MLflow's import, an empty store, the run")
        task = run._task(Resources())
        from ray.train import RunConfig
        from ray.train.torch import TorchTrainer

        laps.end("driver: Ray Train's import")
        TorchTrainer(
            _in_worker,
            train_loop_config={"task": task, "out": str(folder), "asked": time.time()},
            scaling_config=Resources().scaling(),
            run_config=RunConfig(name="benchmark", storage_path=str(folder / "ray")),
        ).fit()
        found = json.loads((folder / "found.json").read_text())
    for part, seconds in [*laps.found, *found["laps"]]:
        print(f"{seconds:8.2f} s  {part}")
    _print_rates(options, found["bare"], found["whole"])


class _Laps:
    """Names the seconds since the last lap."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float]] = []
        self._since = time.perf_counter()

    def end(self, name: str) -> None:
        self.found.append((name, time.perf_counter() - self._since))
        self._since = time.perf_counter()


def _experiment(options: TrainBenchmark):  # type: ignore[no-untyped-def]
    from stop_core.experiment import ExperimentConfig

    return ExperimentConfig(
        tower=options.tower, batch_size=options.batch_size, epochs=options.rounds + 1
    )


def _make_cache(options: TrainBenchmark, folder: Path) -> Path:
    """The training clips of a small motion set, in the size that the tower takes."""
    from pipelines.preprocess import PreprocessConfig, preprocess
    from stop_core.clip import tower_shape
    from stop_core.tiny.motion import write_motion_dataset

    # A tenth goes to validation, which this cache leaves out.
    write_motion_dataset(folder / "videos", train=-(-options.clips // 56) * 64, test=8, seed=0)
    shape = tower_shape(options.tower)
    assert shape is not None
    config = PreprocessConfig(
        dataset="hmdb51",
        data_root=folder / "videos",
        cache=folder / "cache",
        frames=options.frames,
        size=shape.image_size,
        limit=options.clips,
        output=folder,
    )
    preprocess(config)
    return folder / "cache"


def _in_worker(arguments: dict[str, Any]) -> None:
    """Takes turns in the worker that Ray Train has started."""
    entered = time.time() - arguments["asked"]
    laps = _Laps()
    from dataclasses import replace

    from pipelines.worker_run import WorkerRun
    from pipelines.worker_session import RayTrainSession

    laps.end("worker: imports")
    task = arguments["task"]
    worker = WorkerRun(replace(task, test=False), RayTrainSession())
    worker.splits.pop("val", None)
    laps.end("worker: model, texts, cache")
    trainer = worker.trainer
    assert trainer is not None
    bare = _bare(trainer)
    bare(1)
    laps.end("worker: first step")
    worker.train_epoch(trainer)  # untimed: the pages of the cache are in memory afterwards
    steps = trainer.steps_per_epoch
    times: dict[str, list[float]] = {"bare": [], "whole": []}
    for _ in range(trainer.config.epochs - 1):
        for name, work in (
            ("bare", lambda: bare(steps)),
            ("whole", lambda: worker.train_epoch(trainer)),
        ):
            started = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - started) / steps)
    assert worker.courier is not None
    worker.courier.close()
    parts = [("Ray Train: controller and worker, until our code runs", entered), *laps.found]
    (Path(arguments["out"]) / "found.json").write_text(json.dumps({"laps": parts, **times}))


def _bare(trainer: Any) -> Callable[[int], None]:
    """Runs so many steps on one batch in memory."""
    import torch

    from stop_core.backward import backward

    clips = list(range(min(trainer.config.batch_size, len(trainer.clips))))
    frames = trainer.clips.read(clips)
    parameters = list(trainer.model.trainable().values())

    def run(steps: int) -> None:
        trainer.model.train()
        for _ in range(steps):
            trainer.optimizer.zero_grad(set_to_none=True)
            backward(trainer.objective, frames, clips, epoch=0, total=len(clips))
            torch.nn.utils.clip_grad_norm_(parameters, trainer.config.clip_norm)
            trainer.optimizer.step()

    return run


def _print_rates(options: TrainBenchmark, bare: list[float], whole: list[float]) -> None:
    ratios = [b / w for b, w in zip(bare, whole, strict=True)]
    print(f"{options}")
    for name, seconds in (("bare", bare), ("whole", whole)):
        middle = statistics.median(seconds)
        print(
            f"{name:<6} {1000 * middle:8.1f} ms a step, {options.batch_size / middle:8.1f} clips/s"
        )
    steps = options.clips // options.batch_size
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    print(f"whole / bare rate {spread}, {steps} steps an epoch")


if __name__ == "__main__":
    main(tyro.cli(TrainBenchmark))
