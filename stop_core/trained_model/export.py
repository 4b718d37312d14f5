"""A trained model as a program that does not need this code: `torch.export`, or ONNX.

The program maps frames to logits, or to embeddings if the model has no classes. The text embeddings
are constants of it, and the text tower is left out. It computes in float32.

Shapes: B videos, T frames of S x S pixels, C classes, E channels of the joint text-video space.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from stop_core.trained_model.frames import Preprocessing
from stop_core.trained_model.model import TrainedModel

INPUT = "frames"


class _Program(nn.Module):
    """uint8 frames [B, T, S, S, 3] -> logits [B, C], or embeddings [B, E]."""

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model.requires_grad_(False)
        texts = trained.class_embeddings.clone() if trained.classes else None
        self.register_buffer("text_CE", texts)
        self.text_CE: Tensor | None

    def forward(self, frames: Tensor) -> Tensor:
        if self.text_CE is None:
            return self.model.encode_video(frames)
        return cast(Tensor, self.model(frames, self.text_CE))


@torch.no_grad()
def export_program(trained: TrainedModel) -> tuple[ExportedProgram, Callable[[Tensor], Tensor]]:
    """Returns the program, for any number of videos, and the function that it was made from.

    The tensors of `trained` no longer require gradients. Raises ValueError if it is not on the CPU.
    """
    if trained.device.type != "cpu":
        raise ValueError(f"the model is on {trained.device}; load it on the CPU to export it")
    answering = _Program(trained).eval()
    frames = next(parity_clips(trained.preprocessing, batches=(2,)))
    answering(frames)  # folds the frozen weights, so that the export contains them folded
    program = torch.export.export(
        answering, (frames,), dynamic_shapes={INPUT: {0: Dim("batch")}}, strict=False
    )
    _remove_unused(program)
    return program, answering


def _remove_unused(program: ExportedProgram) -> None:
    """Removes the text tower and the weights that were folded into others: half of the file."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in list(program.graph.nodes):
        if node.op != "placeholder" or node.users:
            continue
        spec = specs[node.name]
        if spec.kind == InputKind.USER_INPUT or spec.target is None:
            continue
        program.graph.erase_node(node)
        program.graph_signature.input_specs.remove(spec)
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    program.graph_module.recompile()


def save_program(program: ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    """Writes a .pt2 file; returns the function of the program that is read back from it."""
    with warnings.catch_warnings():
        # Folded weights are parts of larger ones; `largest_difference` detects any that is lost.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda frames: module(frames)


@torch.no_grad()
def save_onnx(program: ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    """Writes an .onnx file; returns the function that ONNX Runtime computes with it."""
    import onnxruntime  # type: ignore[import-untyped]

    exported: Any = torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=["answer"],
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
    )
    exported.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda frames: torch.from_numpy(session.run(None, {INPUT: frames.numpy()})[0])


def _stable_sort(
    self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """Translates a stable torch.sort: among equal values, ONNX's TopK keeps their order too."""
    from onnxscript import opset18

    del stable
    op: Any = opset18  # its type hints are narrower than the accepted types
    count = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)


@torch.no_grad()
def largest_difference(
    exported: Callable[[Tensor], Tensor],
    model: Callable[[Tensor], Tensor],
    how: Preprocessing,
) -> float:
    """Returns the largest difference of the outputs on synthetic videos; infinity for NaN."""
    largest = 0.0
    for frames in parity_clips(how):
        difference = (exported(frames) - model(frames)).abs().max().item()
        largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def parity_clips(how: Preprocessing, batches: tuple[int, ...] = (1, 3, 4)) -> Iterator[Tensor]:
    """Yields batches of uint8 frames [B, T, S, S, 3]: moving waves with random noise."""
    generator = torch.Generator().manual_seed(0)
    time_T = torch.arange(how.frames)[:, None, None, None] / how.frames
    y_S = (torch.arange(how.size) / how.size).view(1, -1, 1, 1)
    x_S = (torch.arange(how.size) / how.size).view(1, 1, -1, 1)
    for batch in batches:
        clips = []
        for _ in range(batch):
            speed, tall, wide = (6 * torch.rand(3, 3, generator=generator)).unbind()
            waves = torch.sin(6.3 * (tall * y_S + wide * x_S + speed * time_T))
            noise = torch.randn(how.frames, how.size, how.size, 3, generator=generator)
            strength = torch.rand(1, generator=generator)
            pixels = 128 + 90 * (1 - strength) * waves + 90 * strength * noise
            clips.append(pixels.clamp(0, 255).to(torch.uint8))
        yield torch.stack(clips)
