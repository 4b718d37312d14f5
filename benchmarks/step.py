"""Benchmarks a STOP training step against one of the frozen tower only.

All of them run in this process, in turn, on the same frames, with the same attention over the same
patch tokens, so noise of the machine affects all of them. floors.py describes the baselines.

    python benchmarks/step.py --tower ViT-B-32-quickgelu --videos 2 --frames 12
"""

import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.floors import SUBJECTS, Work, forward_passes, training_steps
from stop_core import StopConfig, StopModel, build_model
from stop_core.settings.stop import Attention


@dataclass(frozen=True)
class StepBenchmark:
    """Time a STOP training step and the frozen tower, in turn, and print their ratios."""

    tower: str = "ViT-B-32-quickgelu"
    """Any open_clip ViT, with random weights."""
    videos: int = 2
    """Videos per step."""
    frames: int = 12
    """Frames per video."""
    rounds: int = 7
    """Number of timed turns."""
    threads: int = 1
    """Number of CPU threads."""
    width: int = 32
    """Hidden channels of STOP's prompters."""
    bf16: bool = False
    """Use bfloat16 autocast."""
    attention: tuple[Attention, ...] = ("joint", "frame")
    """joint, frame or both."""
    memory: bool = True
    """Also measure the peak memory of a step, each in a separate process."""
    only: Literal["open_clip", "lean", "STOP"] | None = None
    """Print only the peak memory of a training step of this one, in MiB (default: measure all)."""


def main(options: StepBenchmark) -> None:
    """Prints one row per attention, for training and for inference."""
    torch.set_num_threads(options.threads)
    if options.only:
        _print_peak_memory(options)
        return
    print(f"{options}\ntorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print("seconds are medians; a ratio is the median of the turns' ratios (lowest to highest)")
    columns = (f"{name + ' s':>12}" for name in SUBJECTS)
    print(f"{'attention':<10}{'work':<9}", *columns, f"{'STOP/lean':>20} {'STOP/open_clip':>20}")
    for attention in options.attention:
        model, frames = _setting(options, attention)
        for work, make in (("training", training_steps), ("forward", forward_passes)):
            subjects = make(model, frames, attention, bf16=options.bf16)
            _print_row(attention, work, _take_turns(subjects, options.rounds))
        if options.memory:
            peaks = [_peak_memory(options, attention, name) for name in SUBJECTS]
            shown = " ".join(
                f"{name} {mib:.0f} MiB" for name, mib in zip(SUBJECTS, peaks, strict=True)
            )
            print(f"{attention:<10}memory   {shown}; STOP/open_clip {peaks[2] / peaks[0]:.2f}")


def _setting(options: StepBenchmark, attention: Attention) -> tuple[StopModel, Tensor]:
    config = StopConfig(
        attention=attention, spatial_width=options.width, temporal_width=options.width
    )
    model = build_model(options.tower, "random", config).train()
    shape = (options.videos, options.frames, model.image_size, model.image_size, 3)
    return model, torch.randint(256, shape, dtype=torch.uint8)


def _take_turns(subjects: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each, measured in turn, after one untimed turn."""
    for work in subjects.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, work in subjects.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _print_row(attention: str, work: str, seconds: dict[str, list[float]]) -> None:
    medians = (f"{statistics.median(times):12.3f}" for times in seconds.values())
    ratios = []
    for floor in ("lean", "open_clip"):
        turns = [a / b for a, b in zip(seconds["STOP"], seconds[floor], strict=True)]
        spread = f"{statistics.median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f})"
        ratios.append(f"{spread:>20}")
    print(f"{attention:<10}{work:<9}", *medians, *ratios, flush=True)


def _peak_memory(options: StepBenchmark, attention: Attention, subject: str) -> float:
    """Returns the MiB that a training step of `subject` adds to its process."""
    values = replace(options, attention=(attention,))
    command = [sys.executable, __file__, "--only", subject, "--attention", attention]
    for name in ("tower", "videos", "frames", "threads", "width"):
        command += [f"--{name}", str(getattr(values, name))]
    command += ["--bf16"] if options.bf16 else []
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(printed.split()[-1])


def _print_peak_memory(options: StepBenchmark) -> None:
    (attention,) = options.attention
    model, frames = _setting(options, attention)
    step = training_steps(model, frames, attention, bf16=options.bf16)[str(options.only)]
    # A small step first: code, thread pools and folded weights are not part of a step's memory.
    small = training_steps(model, frames[:1, :1], attention, bf16=options.bf16)[str(options.only)]
    small()
    before = psutil.Process().memory_info().rss
    with _PeakMemory() as peak:
        step()
    print((peak.bytes - before) / 2**20)


class _PeakMemory(threading.Thread):
    """The peak resident memory of this process, sampled every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.003):
            self.bytes = max(self.bytes, psutil.Process().memory_info().rss)

    def __enter__(self) -> "_PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


if __name__ == "__main__":
    main(tyro.cli(StepBenchmark))
