"""What a trial of a sweep costs before its first step: in a process of its own, and in a kept one.

    python benchmarks/sweep.py --tower ViT-B-32-quickgelu --classes 51

Both are measured in CPU seconds, which other work on the machine moves less than the clock. A
process of its own imports what a trial imports, loads the tower and embeds the class sentences. A
kept one, as `pipelines/sweep.py` uses it from a second trial on, has all of that and builds the
method's own layers alone.
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
    """Compare the start of a trial in a new process with that in a kept one."""

    tower: str = "ViT-B-32-quickgelu"
    """With random weights: no download."""
    classes: int = 51
    repeats: int = 3
    """New processes, and trials in the kept one."""


_NEW = """
import time
import pipelines.training.worker, pipelines.sweeping.trial_worker
from benchmarks.sweep import start
from stop_core.clip.loading import load_clip
start({tower!r}, {classes}, load_clip)
print(time.process_time())
"""


def start(tower: str, classes: int, load) -> None:  # type: ignore[no-untyped-def]
    """What a trial does before its first step."""
    from stop_core.model.class_texts import ClassTexts
    from stop_core.model.methods import build_method
    from stop_core.runtime.seeding import seed_weights
    from stop_core.settings.experiment import ExperimentConfig

    seed_weights(0)
    model = build_method(ExperimentConfig(tower=tower), load(tower, "random"), classes)
    sentences = [[f"a video of the action number {number}"] for number in range(classes)]
    ClassTexts(model, sentences).embeddings()


def main(options: SweepBenchmark) -> None:
    """Prints both, and the ratio."""
    from stop_core.clip.shared import ClipCache

    program = _NEW.format(tower=options.tower, classes=options.classes)
    new = [
        float(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT).split()[-1])
        for _ in range(options.repeats)
    ]
    keeper, kept = ClipCache(), []
    for _ in range(options.repeats + 1):
        began = time.process_time()
        start(options.tower, options.classes, keeper.load)
        kept.append(time.process_time() - began)
    first, second = sorted(new)[len(new) // 2], sorted(kept[1:])[len(new) // 2]
    print(f"{options.tower}, {options.classes} classes, CPU seconds before the first step")
    print(f"  a process of its own   {first:8.2f}")
    print(f"  a kept process         {second:8.2f}   ({first / second:.0f} x less)")


if __name__ == "__main__":
    main(tyro.cli(SweepBenchmark))
