"""The cost of a STOP training step against that of the frozen tower alone.

Both run in this process, turn by turn, on the same frames, with the same attention over the same
patch tokens. The floor is the tower as open_clip runs it, forward and backward to its inputs.

    python benchmarks/step.py --tower ViT-B-32-quickgelu --videos 2 --frames 12
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stop_core import StopConfig, StopModel, build_model
from stop_core.config import Attention
from stop_core.sequences import pack


@dataclass(frozen=True)
class StepBenchmark:
    """Time a STOP training step and the frozen tower, turn by turn, and print their ratio."""

    tower: str = "ViT-B-32-quickgelu"
    """Any open_clip ViT, with random weights."""
    videos: int = 2
    """Videos a step."""
    frames: int = 12
    """Frames a video."""
    rounds: int = 5
    """Timed turns of each."""
    threads: int = 1
    """CPU threads."""


def main(options: StepBenchmark) -> None:
    """Prints a row for joint and one for frame-wise attention."""
    torch.set_num_threads(options.threads)
    print(f"{options}\ntorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(
        f"{'attention':<10} {'floor s':>9} {'STOP s':>9} {'ratio':>7} {'lowest':>7} {'highest':>8}"
    )
    for attention in ("joint", "frame"):
        config = StopConfig(attention=attention)  # type: ignore[arg-type]
        model = build_model(options.tower, config=config).train()
        size = model.image_size
        shape = (options.videos, options.frames, size, size, 3)
        frames = torch.randint(256, shape, dtype=torch.uint8)
        pairs = _take_turns(_floor(model, frames, attention), _stop(model, frames), options.rounds)
        ratios = [stop / floor for floor, stop in pairs]
        floor, stop = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"{attention:<10} {floor:9.3f} {stop:9.3f} {statistics.median(ratios):7.2f} "
            f"{min(ratios):7.2f} {max(ratios):8.2f}",
            flush=True,
        )


def _floor(model: StopModel, frames: Tensor, attention: Attention) -> Callable[[], None]:
    """The frozen tower in open_clip's own code, with a gradient to the tokens that enter it."""
    tokens = pack(model.first_tokens(frames, attention), attention)

    def step() -> None:
        leaf = tokens.clone().requires_grad_()
        model.tower.visual.transformer(leaf)[:, 0].sum().backward()

    return step


def _stop(model: StopModel, frames: Tensor) -> Callable[[], None]:
    """A training step of STOP without the optimiser."""
    texts = model.encode_text([f"class {number}" for number in range(len(frames))])
    labels = torch.arange(len(frames))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(frames, texts), labels).backward()

    return step


def _take_turns(
    first: Callable[[], None], second: Callable[[], None], rounds: int
) -> list[tuple[float, float]]:
    """Seconds of both, measured alternately, after one untimed turn."""
    first()
    second()
    return [(_seconds(first), _seconds(second)) for _ in range(rounds)]


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(tyro.cli(StepBenchmark))
