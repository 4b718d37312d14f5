"""The rate of a whole training against its bare step, and what its start-up takes.

The start-up is itemised twice: without Ray Train, as `pipelines/train.py` trains with one worker
on the CPU, and with it. The rates are measured in a worker of Ray Train, turn by turn, on the same
model and batches, by the clock and by the processor time of the worker's process with all of its
threads, which a busy machine disturbs less:

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

Lap = tuple[str, float, float]
"""What it was, its seconds by the clock, and those of the process's processor time."""


@dataclass(frozen=True)
class TrainBenchmark:
    """Time whole epochs of a training worker against bare steps, turn by turn."""

    tower: str = "tiny"
    """Any open_clip ViT, with random weights; tiny and tiny-64 have their own."""
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
        cache = _alone(_make_cache, options, folder)
        print("start-up without Ray Train")
        _print_laps(_alone(_start_here, options, cache, folder / "here"))
        print("start-up with Ray Train")
        # Not in another process: Ray takes the function to its worker by value only from here.
        laps, found = _start_ray_train(options, cache, folder / "there")
        _print_laps([*laps, *found["laps"]])
    _print_rates(options, found)


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs it in a process of its own: what it imports is not missing from the next start-up."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _begin(options: TrainBenchmark, cache: Path, output: Path, laps: "_Laps") -> tuple[Any, Any]:
    """The run and the task of its worker, as `TrainingRun.train` makes them."""
    from pipelines.cluster.resources import Resources
    from pipelines.tracking.store import open_experiment
    from pipelines.training.run import TrainingRun

    laps.end("driver: imports (MLflow)")
    run = TrainingRun(_experiment(options), cache, output)
    laps.end("driver: look at cache and tower (imports torch and open_clip)")
    open_experiment(output, run.manifest.dataset)
    run._track(Resources(), None, None)
    laps.end("driver: an empty store, the run")
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

    start_ray()
    laps.end("driver: Ray")
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer

    laps.end("driver: Ray Train's import")
    TorchTrainer(
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
    """Names the seconds since the last lap: by the clock, and of this process's processor time."""

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
    """The training clips of a small motion set, in the size that the tower takes."""
    from pipelines.preprocessing.make_cache import PreprocessConfig, make_cache
    from stop_core.clip.loading import tower_shape
    from stop_core.datasets.motion.files import write_motion_dataset

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
    make_cache(config)
    return folder / "cache"


def _start_worker(task: Any, session: Any, laps: _Laps) -> tuple[Any, Callable[[int], None]]:
    """A worker that has done its first step, and the bare step."""
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
    """Takes turns in the worker that Ray Train has started."""
    entered = time.time() - arguments["asked"]
    laps = _Laps()
    from pipelines.training.session import RayTrainSession

    task = arguments["task"]
    worker, bare = _start_worker(task, RayTrainSession(task.folder), laps)
    trainer = worker.trainer
    worker.train_epoch(trainer)  # untimed: the pages of the cache are in memory afterwards
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
    """Runs so many steps on one batch in memory."""
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
    print(f"{options}, {options.clips // options.batch_size} steps an epoch")
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
