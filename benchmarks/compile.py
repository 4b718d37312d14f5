"""Compiles the training step of every method, and compares it with the eager one.

Each row is a process with the first blocks of the tiny tower: the graphs of the step (with
`fullgraph`: a break is an error); the processor time of compiling it, with the C++ compiler; the
largest difference of the output and of a gradient, relative to the norm of the eager one; and how
many graphs are added by a second model in the same process, by one with other values of `alpha`,
`beta` and `eta`, and by one with others again.

    python benchmarks/compile.py                        # through Inductor: minutes a row on a CPU
    python benchmarks/compile.py --backend aot_eager_decomp_partition      # without code
    python benchmarks/compile.py --methods stop --attentions frame --precisions fp32
"""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import StopConfig

BY_ATTENTION = ("stop", "stop-static", "stop-temporal-vpt", "vpt-shallow", "vpt-deep")
"""The methods that have both kinds of attention; of the others, only the first is measured."""


@dataclass(frozen=True)
class CompileBenchmark:
    """Compare compiled with eager training steps."""

    methods: tuple[str, ...] = tuple(
        name for name, method in METHODS.items() if method.trains and name != "linear-probe"
    )
    attentions: tuple[str, ...] = ("frame", "joint")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    backend: str = "inductor"
    """The backend of torch.compile."""
    blocks: int = 2
    """Blocks of the tiny tower that are used."""
    clips: int = 4
    """Clips of a step."""
    frames: int = 4
    """Frames of a clip."""
    steps: int = 10
    """Timed steps."""


def main(options: CompileBenchmark) -> None:
    """Prints a row of the table for each method, attention and precision."""
    print(f"{options}\n")
    print(
        "| method | attention | precision | graphs | first step, CPU s | output | gradient "
        "| compiled / eager | graphs of a next trial, with other numbers, and others again |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---|", flush=True)
    for method in options.methods:
        attentions = options.attentions if method in BY_ATTENTION else options.attentions[:1]
        for attention in attentions:
            for precision in options.precisions:
                stop = StopConfig(attention=attention)  # type: ignore[arg-type]
                config = ExperimentConfig(
                    method=method,
                    tower="tiny",
                    static_prompts=4,
                    precision=precision,  # type: ignore[arg-type]
                    stop=stop,
                )
                with get_context("spawn").Pool(1) as pool:
                    cells = pool.apply(_row, (options, config))
                print(f"| {method} | {attention} | {precision} | {cells} |", flush=True)


def _row(options: CompileBenchmark, config: ExperimentConfig) -> str:
    """Returns the other cells of a row; an exception is one of them."""
    import torch
    from torch import Tensor
    from torch._dynamo.utils import counters

    from stop_core.clip.loading import load_clip
    from stop_core.model.methods import build_method
    from stop_core.runtime.devices import autocast

    torch.set_num_threads(1)
    clip = load_clip("tiny")
    visual = clip.model.visual
    visual.transformer.resblocks = visual.transformer.resblocks[: options.blocks]  # type: ignore
    shape = options.clips, options.frames, 32, 32, 3
    frames = torch.randint(256, shape, dtype=torch.uint8)
    weight_BE = torch.randn(options.clips, clip.model.visual.output_dim)  # type: ignore[arg-type]

    def step(
        encode: Callable[[Tensor], Tensor], trained: dict[str, torch.nn.Parameter], count: int
    ) -> dict[str, Tensor]:
        """Returns the output and the gradients of a step."""
        torch.manual_seed(1)  # of dropout
        with autocast(config, frames.device):
            out = encode(frames[:count])
        (out.float() * weight_BE[:count]).sum().backward()
        results = {name: p.grad for name, p in trained.items() if p.grad is not None}
        for parameter in trained.values():
            parameter.grad = None
        return {"": out.detach(), **results}

    def trial(own: ExperimentConfig) -> tuple[float, float, Callable[[], float]]:
        """Compiles one model; returns its differences, and a function for the ratio of times."""
        torch.manual_seed(0)
        model = build_method(own, clip, 8).train()
        trained = model.trainable()
        with torch.no_grad():  # most methods start at zero, where many gradients are zero
            for parameter in trained.values():
                parameter += 0.02 * torch.randn_like(parameter)
        eager = model.encode_video
        compiled = torch.compile(eager, backend=options.backend, fullgraph=True)
        expected, found = step(eager, trained, len(frames)), step(compiled, trained, len(frames))
        assert expected.keys() == found.keys()
        far = {n: float((e - found[n]).norm() / e.norm()) for n, e in expected.items() if e.any()}

        def ratio() -> float:
            seconds = []
            for encode in (compiled, eager):
                started = time.process_time()
                for _ in range(options.steps):
                    step(encode, trained, len(frames))
                seconds.append(time.process_time() - started)
            return seconds[0] / seconds[1]

        return far.pop(""), max(far.values()), ratio

    def graphs() -> int:
        return counters["stats"]["unique_graphs"]

    try:
        started = _processor_seconds()
        output, gradient, ratio = trial(config)
        first, seconds = graphs(), _processor_seconds() - started
        timed, more = ratio(), []
        numbers = replace(config.stop, alpha=0.3, beta=0.2, eta=3.0)
        others = replace(numbers, alpha=0.6, beta=0.7, eta=2.5)
        for stop in (config.stop, numbers, others):
            before = graphs()
            _, far, _ = trial(replace(config, stop=stop))
            more.append(graphs() - before)
            gradient = max(gradient, far)
        cells = f"{first} | {seconds:.0f} | {output:.1e} | {gradient:.1e} | {timed:.2f}"
        return f"{cells} | {', '.join(map(str, more))}"
    except Exception as problem:  # compilers fail in many ways; the other rows are still measured
        return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"


def _processor_seconds() -> float:
    """Processor time of this process and of the compilers that it started."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


if __name__ == "__main__":
    main(tyro.cli(CompileBenchmark))
