"""Counts the kernels of a compiled STOP training step, without a GPU, a compiler or weights.

Inductor plans the kernels of the first two and three blocks of a tower on tensors without data, and
every group of fused operations and every library call in the plan is one kernel. The other blocks
are like the third. No code is generated or run. Triton's rules of fusion are used, and the library
calls of a CPU, for which a concatenation is a kernel for each of its parts: a GPU's plan has
fewer. Milliseconds are the roofline of kernels.py, not a measurement.

    python benchmarks/compiled_kernels.py        # ViT-B/32: two CPU-minutes for each attention
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch._inductor.config
import tyro
from torch import Tensor, fx
from torch._inductor import ir
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.floors import LeanTower
from benchmarks.kernels import Kernel, as_on_a_gpu, count_flops
from stop_core import StopConfig, StopModel
from stop_core.clip.loading import load_clip
from stop_core.clip.tower import FrozenTower
from stop_core.settings.stop import Attention

_AS_FOR_TRITON = {"cpu_backend": "triton", "fx_graph_cache": False, "compile_threads": 1}


@dataclass(frozen=True)
class CompiledKernels:
    """Count the kernels of a compiled training step, and print a Markdown table."""

    tower: str = "ViT-B-32-quickgelu"
    """Any open_clip ViT, with random weights."""
    videos: int = 64
    """Videos per step."""
    frames: int = 12
    """Frames per video."""
    attention: tuple[Attention, ...] = ("frame", "joint")
    """joint, frame or both."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Mixed precision, or float32."""


def plan(step: Callable[[], object]) -> list[list[Kernel]]:
    """Returns the kernels of each graph that `step` compiles: first forward, then backward."""
    graphs: list[list[Kernel]] = []

    def stop_before_code(graph: GraphLowering) -> Any:
        graph.init_wrapper_code()
        graph._update_scheduler()
        found = [_kernel(node, len(graphs)) for node in graph.scheduler.nodes]
        graphs.append([kernel for kernel in found if kernel])
        made = [_shape(out) for out in graph.graph_outputs]
        outputs = lambda _: [m and torch.empty_strided(m[0], m[1], dtype=m[2]) for m in made]  # noqa: E731
        return SimpleNamespace(call=outputs, __file__="", runner=None)

    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(_AS_FOR_TRITON),
        patch.object(GraphLowering, "compile_to_module", stop_before_code),
    ):
        step()
    return graphs


def _shape(out: Any) -> tuple[Any, ...] | None:
    if isinstance(out, (ir.NoneAsConstantBuffer, ir.ShapeAsConstantBuffer)):
        return None
    return tuple(map(int, out.get_size())), tuple(map(int, out.get_stride())), out.get_dtype()


def _kernel(node: Any, graph: int) -> Kernel | None:
    """Returns the kernel of a scheduled node; None if it starts none."""
    inner = node.node
    if isinstance(node, NopKernelSchedulerNode) or isinstance(inner, ir.MultiOutput):
        return None
    flops, name, dtype = 0, "fused", torch.float32
    if node.is_extern():
        for origin in inner.get_origins():
            if isinstance(origin.target, torch._ops.OpOverload):
                args, kwargs = tree_map(_value, (origin.args, origin.kwargs))
                out = _value(origin)
                own = count_flops(origin.target, args, kwargs, out)
                if own >= flops:
                    flops, name, dtype = own, origin.name, tree_leaves(out)[0].dtype
    part = "backward" if graph else "forward"
    return Kernel(part, name, 1, node.get_read_write_buffers_sizes(), flops, dtype, False)


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def count(options: CompiledKernels, attention: Attention, blocks: int) -> dict[str, list[Kernel]]:
    """Returns the kernels of the step on the first blocks: of STOP and of the lean floor."""
    folded = FrozenTower._folded  # which knows what to do while it is traced
    with as_on_a_gpu(), FakeTensorMode(allow_non_fake_inputs=True):
        clip = load_clip(options.tower, "random")
        visual: Any = clip.model.visual
        visual.transformer.resblocks = visual.transformer.resblocks[:blocks]
        model = StopModel(clip, StopConfig(attention=attention)).train()
        size = model.image_size
        pixels = torch.zeros(options.videos, options.frames, size, size, 3, dtype=torch.uint8)
        bf16 = options.precision == "bf16"

        def steps(encode: Callable[[Tensor], Tensor], given: Tensor) -> Callable[[], None]:
            def step() -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    out = encode(given)
                out.float().sum().backward()  # type: ignore[no-untyped-call]

            return step

        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.encode_video(pixels)  # folds the weights of the blocks
        tokens = model.first_tokens(pixels, attention).packed.requires_grad_()
        lean = LeanTower(model.tower, bf16)
        found: dict[str, list[Kernel]] = {}
        with patch.object(FrozenTower, "_folded", folded):
            for name, encode, given in (
                ("STOP", model.encode_video, pixels),
                ("lean", lean.__call__, tokens),
            ):
                compiled = torch.compile(encode, fullgraph=True)
                found[name] = [k for graph in plan(steps(compiled, given)) for k in graph]
        return found


def main(options: CompiledKernels) -> None:
    """Prints a row for each attention."""
    print("| attention | forward | backward | step | lean | modelled ms, step / lean |")
    print("|---|---:|---:|---:|---:|---|", flush=True)
    with FakeTensorMode():
        visual: Any = load_clip(options.tower, "random").model.visual
    depth = len(visual.transformer.resblocks)
    for attention in options.attention:
        few, more = (count(options, attention, blocks) for blocks in (2, 3))

        def whole(name: str, parts: str, value: Callable[[Kernel], float]) -> float:
            two, three = (
                sum(value(kernel) for kernel in found[name] if kernel.part in parts)
                for found in (few, more)  # noqa: B023
            )
            return two + (depth - 2) * (three - two)

        both = "forward backward"
        asked = ("STOP", "forward"), ("STOP", "backward"), ("STOP", both), ("lean", both)
        cells = [f"{whole(name, parts, lambda k: k.kernels):.0f}" for name, parts in asked]
        stop, lean = (1e3 * whole(name, both, lambda k: k.seconds) for name in ("STOP", "lean"))
        cells.append(f"{stop / lean:.2f} ({stop:.1f} / {lean:.1f})")
        print("| " + " | ".join((attention, *cells)) + " |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(CompiledKernels))
