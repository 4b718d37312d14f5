"""Checks and benchmarks STOP on one GPU, and prints a page of Markdown.

First the results are compared with those of the CPU (gpu_checks.py), then follow step time, videos
per second, ratio to the floors and utilization, and last the training loop that reads and copies
its clips. Needs only torch, open_clip and stop_core: no Ray, no MLflow, no weights, no data. The
subjects of a row (see floors.py) take turns in this process, on the same random frames.

    python benchmarks/gpu.py                      # ViT-B/32, B/16 and L/14, under 8 minutes
    mkdir -p docs/benchmarks && python benchmarks/gpu.py > docs/benchmarks/NAME-OF-THE-GPU.md
"""

import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.floors import SUBJECTS, Work, forward_passes, training_steps
from benchmarks.gpu_checks import CLASSES, NoiseClips, check_device
from stop_core import StopConfig, StopModel, build_model
from stop_core.model.class_texts import ClassTexts
from stop_core.runtime.devices import OutOfMemory, use_gpu
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import Attention
from stop_core.settings.training import TrainingOptions
from stop_core.training.objectives import Recognition
from stop_core.training.trainer import Trainer

_MATMUL = 8192  # edge of the square matrices whose product measures the hardware's peak
HEADER = (
    "tower",
    "videos",
    "attention",
    "work",
    "mode",
    "STOP ms",
    "videos/s",
    "STOP / lean",
    "STOP / open_clip",
    "of matmul peak",
    "peak GiB",
)


@dataclass(frozen=True)
class GpuBenchmark:
    """Time STOP on one GPU against the frozen tower, and print a Markdown table."""

    towers: tuple[str, ...] = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
    """Any open_clip ViTs, with random weights."""
    videos: tuple[int, ...] = (64, 32, 16)
    """Videos per step, one number per tower; halved until a step fits into memory."""
    frames: int = 12
    """Frames per video."""
    attention: tuple[Attention, ...] = ("joint", "frame")
    """joint, frame or both."""
    modes: tuple[str, ...] = ("eager", "compiled")
    """eager, compiled (by torch.compile, STOP and the lean floor) or both."""
    bf16: bool = True
    """Use bfloat16 autocast."""
    width: int = 32
    """Hidden channels of STOP's prompters."""
    checks: bool = True
    """Compare every method with the CPU first."""
    rounds: int = 10
    """Number of timed turns."""
    minutes: float = 7.5
    """Time limit: no row starts after this many minutes."""
    device: str = "cuda"
    """cuda, or cpu to try the script out."""

    def __post_init__(self) -> None:
        if len(self.videos) != len(self.towers):
            raise ValueError("--videos needs one number for each of --towers")
        if unknown := set(self.modes) - {"eager", "compiled"}:
            raise ValueError(f"--modes are eager and compiled, got {unknown.pop()!r}")


def main(options: GpuBenchmark) -> None:
    """Prints one row per tower, attention, kind of work and mode."""
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no GPU here; --device cpu tries the script out")
    if options.device == "cuda":
        use_gpu()
    until = time.monotonic() + 60 * options.minutes
    peak = _matmul_rate(options)
    print(_preamble(options, peak))
    if options.checks:
        print("## Results against the CPU\n")
        _print_row(("compared", "largest relative difference", ""), header=True)
        for row in check_device(
            options.device, options.towers[0], compiled="compiled" in options.modes
        ):
            _print_row(row)
    print("\n## Steps\n")
    _print_row(HEADER, header=True)
    # Compiling takes minutes: the eager rows of all towers come first.
    for mode in options.modes:
        for tower, videos in zip(options.towers, options.videos, strict=True):
            for attention in options.attention:
                for cells in _rows(options, tower, videos, attention, mode, peak, until):
                    _print_row((tower, *cells))
    print("\n## Training loop\n")
    _print_row(("tower", "videos", "videos/s", "share of time waiting for clips"), header=True)
    for tower, videos in zip(options.towers, options.videos, strict=True):
        _print_row((tower, *_loop(options, tower, videos, until)))


def _print_row(cells: Sequence[str], *, header: bool = False) -> None:
    rule = "\n|" + "---|" * len(cells) if header else ""
    print("| " + " | ".join(cells) + " |" + rule, flush=True)


def _loop(options: GpuBenchmark, tower: str, videos: int, until: float) -> tuple[str, ...]:
    """Trains STOP on clips that are read from the host's memory and copied ahead.

    The first two steps warm up. A batch that does not fit needs a smaller `--videos`.
    """
    if time.monotonic() > until:
        return (str(videos), "not started: out of time", "")
    stop = StopConfig(spatial_width=options.width, temporal_width=options.width)
    config = ExperimentConfig(
        tower=tower,
        pretrained="random",
        stop=stop,
        batch_size=videos,
        precision="bf16" if options.bf16 else "fp32",
        training=TrainingOptions(steps=options.rounds + 2),
    )
    model = build_model(tower, "random", stop).to(options.device)
    clips = NoiseClips(videos * (options.rounds + 2), options.frames, model.image_size)
    objective = Recognition(model, config, clips, ClassTexts(model, CLASSES))
    try:
        steps = list(Trainer(model, config, clips, objective).steps(0))[2:]
    except OutOfMemory as problem:
        return (str(videos), f"failed: {problem}", "")
    seconds = sum(step.seconds for step in steps)
    waited = sum(step.wait_seconds for step in steps) / seconds
    return (str(videos), f"{videos * len(steps) / seconds:.0f}", f"{waited:.0%}")


def _rows(
    options: GpuBenchmark,
    tower: str,
    videos: int,
    attention: Attention,
    mode: str,
    peak: float,
    until: float,
) -> Iterator[tuple[str, ...]]:
    if time.monotonic() > until:
        yield (str(videos), attention, "", mode, "not started: out of time")
        return
    width = options.width
    config = StopConfig(attention=attention, spatial_width=width, temporal_width=width)
    model = build_model(tower, "random", config).train().to(options.device)
    videos = _largest_that_fits(options, model, videos, attention)
    compiled = mode == "compiled"
    for work, make in (("training", training_steps), ("forward", forward_passes)):
        start = (str(videos), attention, work, mode)
        try:
            frames = _frames(options, model, videos)
            subjects = make(model, frames, attention, bf16=options.bf16, compiled=compiled)
            yield (*start, *_measure(options, subjects, videos, peak))
        except (
            Exception
        ) as problem:  # compilers fail in many ways; the other rows are still measured
            yield (*start, f"failed: {type(problem).__name__}: {_first_line(problem)}")
        torch.compiler.reset()
        _free(options)


def _measure(
    options: GpuBenchmark, subjects: dict[str, Work], videos: int, peak: float
) -> tuple[str, ...]:
    seconds = _take_turns(options, subjects)
    stop = statistics.median(seconds["STOP"])
    ratios = []
    for floor in ("lean", "open_clip"):
        turns = [a / b for a, b in zip(seconds["STOP"], seconds[floor], strict=True)]
        ratios.append(f"{statistics.median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f})")
    with _peak_memory(options) as memory:
        subjects["STOP"]()
    # Utilization counts only the products of the frozen tower. All else is overhead of STOP.
    with FlopCounterMode(display=False) as counter:
        subjects["open_clip"]()
    share = counter.get_total_flops() / stop / peak
    rate = f"{videos / stop:.0f}"
    return (f"{1000 * stop:.1f}", rate, *ratios, f"{share:.0%}", f"{memory[0]:.1f}")


def _take_turns(options: GpuBenchmark, subjects: dict[str, Work]) -> dict[str, list[float]]:
    """Returns the seconds of each, measured in turn, after three untimed turns."""
    seconds: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for turn in range(-3, options.rounds):
        for name in SUBJECTS:
            _wait(options)
            started = time.perf_counter()
            subjects[name]()
            _wait(options)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _largest_that_fits(
    options: GpuBenchmark, model: StopModel, videos: int, attention: Attention
) -> int:
    """Returns the largest of `videos`, half of it and so on whose steps fit into memory.

    The steps also fold the frozen weights before the compiler sees them.
    """
    while not _fits(options, model, videos, attention) and videos > 1:
        _free(options)  # after the exception is gone, which holds the tensors of the attempt
        videos //= 2
    _free(options)
    return videos


def _fits(options: GpuBenchmark, model: StopModel, videos: int, attention: Attention) -> bool:
    try:
        frames = _frames(options, model, videos)
        for step in training_steps(model, frames, attention, bf16=options.bf16).values():
            step()
    except torch.OutOfMemoryError:
        return False
    return True


def _frames(options: GpuBenchmark, model: StopModel, videos: int) -> torch.Tensor:
    shape = (videos, options.frames, model.image_size, model.image_size, 3)
    return torch.randint(256, shape, dtype=torch.uint8, device=options.device)


def _matmul_rate(options: GpuBenchmark) -> float:
    """Returns operations per second of a large matrix product in the benchmarked type."""
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    edge = _MATMUL if options.device == "cuda" else 512
    a, b = (torch.randn(edge, edge, device=options.device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        _wait(options)
        started = time.perf_counter()
        a @ b
        _wait(options)
        best = min(best, time.perf_counter() - started)
    return 2 * edge**3 / best


def _preamble(options: GpuBenchmark, peak: float) -> str:
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    dtype = "bfloat16" if options.bf16 else "float32"
    return (
        f"{name}, torch {torch.__version__}, {dtype}, {options.frames} frames per video, every "
        f"block prompted, {time.strftime('%d %B %Y')}. Medians of {options.rounds} turns; "
        f"ratios (lowest to highest) are taken per turn, `compiled` is STOP and the lean floor, "
        f"open_clip's tower stays eager. The matmul peak is {peak / 1e12:.1f} Tflop/s; its "
        f"share counts only the operations of the frozen tower.\n"
    )


@contextmanager
def _peak_memory(options: GpuBenchmark) -> Iterator[list[float]]:
    """Yields a list that afterwards holds the peak GPU memory of the body in GiB (0 on a CPU)."""
    found = [0.0]
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield found
    if options.device == "cuda":
        found[0] = torch.cuda.max_memory_allocated() / 2**30


def _wait(options: GpuBenchmark) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def _free(options: GpuBenchmark) -> None:
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or ["no reason given"])[0][:200]


if __name__ == "__main__":
    main(tyro.cli(GpuBenchmark))
