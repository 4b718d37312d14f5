"""Benchmarks a whole training against its bare step, and itemizes its start-up.

The start-up is itemized twice: without Ray Train, as `pipelines/train.py` trains with one worker
on the CPU, and with it. The rates are measured in a worker of Ray Train, in turn, on the same model
and batches, by the clock and by the processor time of the worker's process with all of its threads,
which depends less on other load of the machine:

    bare    forward, backward and optimiser on clips in memory, and nothing else
    whole   an epoch as `pipelines/train.py` runs it: reads clips from the cache, records steps,
            monitors prompts, reports a checkpoint to Ray Train, sends records to an SQLite store

Neither includes validation: the cache has only training clips.

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

Lap = tuple[str, float, float]
"""Name, seconds by the clock, and seconds of the process's processor time."""


@dataclass(frozen=True)
class TrainBenchmark:
    """Time whole epochs of a training worker against bare steps, in turn."""

    tower: str = "tiny"
    """Any open_clip ViT, with random weights, or tiny or tiny-64, with trained ones."""
    clips: int = 2048
    """Clips per epoch, a multiple of 8."""
    frames: int = 6
    """Frames per clip."""
    batch_size: int = 16
    """Clips per step."""
    rounds: int = 3
    """Number of timed epochs."""


def main(options: TrainBenchmark) -> None:
    """Prints the parts of the start-up, then the two rates and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = _in_new_process(_make_cache, options, folder)
        print("start-up without Ray Train")
        _print_laps(_in_new_process(_start_here, options, cache, folder / "here"))
        print("start-up with Ray Train")
        # Not in another process: only from here does Ray send the function to its worker by value.
        laps, found = _start_ray_train(options, cache, folder / "there")
        _print_laps([*laps, *found["laps"]])
    _print_rates(options, found)


def _in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs `work` in a new process, so that its imports do not shorten the next start-up."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _begin(options: TrainBenchmark, cache: Path, output: Path, laps: "_Laps") -> tuple[Any, Any]:
    """Returns the run and the task of its worker, as `TrainingRun.train` makes them."""
    from pipelines.cluster.resources import Resources
    from pipelines.tracking.store import open_experiment
    from pipelines.training.run import TrainingRun

    laps.end("driver: imports")
    run = TrainingRun(_experiment(options), cache, output)
    laps.end("driver: look at cache and tower (imports torch and open_clip)")
    open_experiment(output, run.manifest.dataset)
    run._track(Resources(), None, None)
    laps.end("driver: import of MLflow, an empty store, the run")
    return run, run._task(Resources())


def _start_here(options: TrainBenchmark, cache: Path, output: Path) -> list[Lap]:
    laps = _Laps()
    _, task = _begin(options, cache, output, laps)
    from pipelines.training.session import FolderSession

    _start_worker(task, FolderSession(output / "checkpoints"), laps)
    return laps.found


def _start_ray_train(options: TrainBenchmark, cache: Path, output: Path) -> tuple[Any, Any]:
    laps = _Laps()
    _, task = _begin(options, cache, output, laps)
    from pipelines.cluster.resources import Resources
    from pipelines.cluster.session import start_ray

    start_ray(dashboard=False)
    laps.end("driver: Ray")
    from ray.train import RunConfig

    from pipelines.ray_internals.sole_trainer import SoleTrainer

    laps.end("driver: Ray Train's import")
    SoleTrainer(
        _in_worker,
        train_loop_config={"task": task, "out": str(output), "asked": time.time()},
        scaling_config=Resources().scaling(),
        run_config=RunConfig(name=task.folder.name, storage_path=str(task.folder.parent)),
    ).fit()
    return laps.found, json.loads((output / "found.json").read_text())


def _print_laps(laps: list[Lap]) -> None:
    print("    wall  processor time of the process itself")
    total = ("in all", sum(wall for _, wall, _ in laps), sum(own for *_, own in laps))
    for part, wall, own in [*laps, total]:
        print(f"{wall:8.2f} {own:8.2f} s  {part}")


class _Laps:
    """Records the seconds since the last lap: by the clock, and of processor time."""

    def __init__(self) -> None:
        self.found: list[Lap] = []
        self._since = time.perf_counter(), time.process_time()

    def end(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.found.append((name, now[0] - self._since[0], now[1] - self._since[1]))
        self._since = now


def _experiment(options: TrainBenchmark):  # type: ignore[no-untyped-def]
    from stop_core.settings.experiment import ExperimentConfig

    return ExperimentConfig(
        tower=options.tower,
        pretrained="random",
        batch_size=options.batch_size,
        epochs=options.rounds + 1,
    )


def _make_cache(options: TrainBenchmark, folder: Path) -> Path:
    """Writes a cache of the training clips of a small motion set, in the size of the tower."""
    from pipelines.preprocessing.make_cache import PreprocessConfig, make_cache
    from stop_core.clip.loading import tower_shape
    from stop_core.datasets.motion.files import write_motion_dataset

    # A tenth of the clips goes to validation, which this cache omits.
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
    make_cache(config)
    return folder / "cache"


def _start_worker(task: Any, session: Any, laps: _Laps) -> tuple[Any, Callable[[int], None]]:
    """Returns a worker after its first step, and the bare step."""
    from dataclasses import replace

    from pipelines.training.worker import WorkerRun

    laps.end("worker: imports")
    worker = WorkerRun(replace(task, test=False), session)
    worker.splits.pop("val", None)
    laps.end("worker: model, texts, cache")
    bare = _bare(worker.trainer)
    bare(1)
    laps.end("worker: first step")
    return worker, bare


def _in_worker(arguments: dict[str, Any]) -> None:
    """Runs in the worker of Ray Train: times both in turn."""
    entered = time.time() - arguments["asked"]
    laps = _Laps()
    from pipelines.training.session import RayTrainSession

    task = arguments["task"]
    worker, bare = _start_worker(task, RayTrainSession(task.folder), laps)
    trainer = worker.trainer
    worker.train_epoch(trainer)  # untimed: it reads the pages of the cache into memory
    steps = trainer.steps_per_epoch
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "whole": []}
    for _ in range(trainer.config.epochs - 1):
        for name, work in (
            ("bare", lambda: bare(steps)),
            ("whole", lambda: worker.train_epoch(trainer)),
        ):
            wall, processor = time.perf_counter(), time.process_time()
            work()
            passed = time.perf_counter() - wall, time.process_time() - processor
            times[name].append((passed[0] / steps, passed[1] / steps))
    worker.courier.close()
    parts = [("Ray Train: controller and worker, until our code runs", entered, 0.0), *laps.found]
    (Path(arguments["out"]) / "found.json").write_text(json.dumps({"laps": parts, **times}))


def _bare(trainer: Any) -> Callable[[int], None]:
    """Returns a function that runs N steps on one batch in memory."""
    import torch

    from stop_core.training.backward import backward

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


def _print_rates(options: TrainBenchmark, found: dict[str, Any]) -> None:
    print(f"{options}, {options.clips // options.batch_size} steps per epoch")
    for number, clock in enumerate(("wall", "processor")):
        bare, whole = ([turn[number] for turn in found[name]] for name in ("bare", "whole"))
        ratios = [b / w for b, w in zip(bare, whole, strict=True)]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        steps = [1000 * statistics.median(seconds) for seconds in (bare, whole)]
        print(
            f"{clock:<9} time of a step: bare {steps[0]:.1f} ms, whole {steps[1]:.1f} ms; "
            f"rate of whole / bare {spread}"
        )


if __name__ == "__main__":
    main(tyro.cli(TrainBenchmark))
