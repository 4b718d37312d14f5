"""Overhead of a trial before its first step, in a new process and in a reused one.

    python benchmarks/sweep.py --tower ViT-B-32-quickgelu --classes 51

Both are measured in CPU seconds, which depend less on other work on the machine than elapsed time.
A new process imports the modules of a trial, loads the tower and embeds the class sentences. A
reused one, as in `pipelines/sweep.py` from the second trial on, builds only the layers of the
method.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tyro  # noqa: E402


@dataclass(frozen=True)
class SweepBenchmark:
    """Compare the start of a trial in a new process with that in a reused one."""

    tower: str = "ViT-B-32-quickgelu"
    """Name of the tower. It gets random weights, so nothing is downloaded."""
    classes: int = 51
    """Number of classes."""
    repeats: int = 3
    """Number of new processes, and of trials in the reused one."""


_NEW = """
import time
import pipelines.training.worker, pipelines.sweeping.trial_worker
from benchmarks.sweep import start
from stop_core.clip.loading import load_clip
start({tower!r}, {classes}, load_clip)
print(time.process_time())
"""


def start(tower: str, classes: int, load) -> None:  # type: ignore[no-untyped-def]
    """Does the work of a trial before its first step."""
    from stop_core.model.class_texts import ClassTexts
    from stop_core.model.methods import build_method
    from stop_core.runtime.devices import seed_weights
    from stop_core.settings.experiment import ExperimentConfig

    seed_weights(0)
    model = build_method(ExperimentConfig(tower=tower), load(tower, "random"), classes)
    sentences = [[f"a video of the action number {number}"] for number in range(classes)]
    ClassTexts(model, sentences).embeddings()


def main(options: SweepBenchmark) -> None:
    """Prints both times and their ratio."""
    from stop_core.clip.loading import ClipCache

    program = _NEW.format(tower=options.tower, classes=options.classes)
    new = [
        float(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT).split()[-1])
        for _ in range(options.repeats)
    ]
    keeper, reused = ClipCache(), []
    for _ in range(options.repeats + 1):
        began = time.process_time()
        start(options.tower, options.classes, keeper.load)
        reused.append(time.process_time() - began)
    first, second = sorted(new)[len(new) // 2], sorted(reused[1:])[len(new) // 2]
    print(f"{options.tower}, {options.classes} classes, CPU seconds before the first step")
    print(f"  a new process          {first:8.2f}")
    print(f"  a reused process       {second:8.2f}   ({first / second:.0f} times less)")


if __name__ == "__main__":
    main(tyro.cli(SweepBenchmark))
