"""Counts the kernels and bytes of one STOP training step, without a GPU and without weights.

The step runs on tensors without data (FakeTensorMode), and every operation below autograd is
counted. Kernels, bytes and saved activations are counts. Milliseconds are a roofline with the
constants below, not a measurement: an operation takes the longest of its bytes over BANDWIDTH, its
arithmetic over PEAK, and LAUNCH for each of its kernels. The lean floor is the frozen tower on the
same tokens, forward and backward (floors.py).

    python benchmarks/kernels.py                    # ViT-B/32 and ViT-B/16, a minute on two cores
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.floors import LeanTower
from stop_core import StopConfig, StopModel
from stop_core.clip import tower as tower_module
from stop_core.clip.folded_block import FoldedBlock
from stop_core.clip.frozen_linear import FrozenLinear
from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.clip.tower import FrozenTower
from stop_core.settings.stop import Attention

# An H100 (SXM), with what a good kernel reaches of its data sheet.
BANDWIDTH = 2.8e12  # bytes per second
PEAK = {torch.bfloat16: 650e12, torch.float32: 50e12, torch.float64: 30e12}  # operations per second
ATTENTION_PEAK = {torch.bfloat16: 400e12, torch.float32: 25e12}
LAUNCH = 3e-6  # seconds: the least time between the starts of two kernels

_FREE = {"_local_scalar_dense", "_unsafe_view", "scalar_tensor"}
# PyTorch's CUDA code starts these numbers of kernels for one operation; 1 for all others.
# Out-of-place scatters copy first; a sort copies, numbers and sorts.
_KERNELS = {"sort": 3, "topk": 2, "constant_pad_nd": 2, "replication_pad3d_backward": 2}
_KERNELS |= dict.fromkeys(("scatter", "scatter_add", "masked_fill", "index_put"), 2)
_KERNELS |= dict.fromkeys(("slice_backward", "select_backward"), 2)
_OVERWRITES = {"copy_", "fill_", "zero_"}  # do not read their first argument
_CREATES = ("new_", "zeros", "ones", "full", "arange")  # read nothing
_TOUCHES_ROWS = {"gather": 0, "scatter": 1, "scatter_": 2, "scatter_add": 1, "scatter_add_": 3}


@dataclass(frozen=True)
class Kernel:
    """One operation below autograd."""

    part: str
    name: str
    kernels: int
    bytes: int
    flops: int
    dtype: torch.dtype
    is_masked: bool  # attention with a mask, which flash kernels do not take

    @property
    def seconds(self) -> float:
        """The modelled time of the operation."""
        peaks = ATTENTION_PEAK if "attention" in self.name else PEAK
        busy = self.flops / peaks.get(self.dtype, PEAK[torch.float32])
        return max(self.bytes / BANDWIDTH, busy, self.kernels * LAUNCH)


class CountKernels(TorchDispatchMode):
    """Records every operation that starts a kernel, under the `part` that is set at the time."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if func.is_view or name in _FREE or "empty" in name or not written:
            return out
        self.kernels.append(
            Kernel(
                self.part,
                name,
                _kernels(name, args, kwargs or {}),
                _bytes(name, read, written),
                count_flops(func, args, kwargs or {}, out),
                (read or written)[0].dtype,
                "attention" in name and (kwargs or {}).get("attn_mask") is not None,
            )
        )
        return out

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, its operations counted as those of `part`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            result = function(*args, **kwargs)
            self.part = before
            return result

        return counted


def count_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Returns the arithmetic of an operation if it is a product, a convolution or attention."""
    name = func._schema.name
    if count := flop_registry.get(func._overloadpacket):
        return int(count(*args, **kwargs, out_val=out))
    if "attention" not in name:
        return 0
    query, key = args[:2] if "backward" not in name else args[1:3]
    return int((10 if "backward" in name else 4) * query.numel() * key.shape[-2])


def _kernels(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    if name == "convolution":  # the bias is added separately
        return 1 + (args[2] is not None)
    if name == "convolution_backward":  # input, weight and bias have one each
        return sum(args[-1])
    if name in ("addmm", "baddbmm") and kwargs.get("beta", 1):  # a bias vector needs no copy
        return 1 + (kwargs.get("beta", 1) != 1 or args[0].numel() > args[0].shape[-1])
    return _KERNELS.get(name, 1)


def _bytes(name: str, read: list[Tensor], written: list[Tensor]) -> int:
    if name in _TOUCHES_ROWS:  # the rows at the indices, and the indices; a copy of the rest
        of_index, of_row = read[1], read[-1] if name != "gather" else written[0]
        touched = _size(of_index) + (2 + name.startswith("scatter_add")) * _size(of_row)
        return touched + (0 if name.endswith("_") or name == "gather" else 2 * _size(written[0]))
    if name.startswith(_CREATES):
        read = []
    return sum(map(_size, read[name in _OVERWRITES :])) + sum(map(_size, written))


def _size(tensor: Tensor) -> int:
    """Returns the bytes of a tensor; an expanded dimension is read once."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(length for length, stride in pairs if stride)


@dataclass(frozen=True)
class Step:
    """The operations of one training step and of the lean floor's."""

    stop: list[Kernel]
    lean: list[Kernel]
    prompted_blocks: int
    saved: int  # bytes that are stored between the forward and the backward pass

    def kernels(self, *parts: str) -> int:
        """Returns the number of kernels of some parts, or of the whole step."""
        return sum(k.kernels for k in self.stop if not parts or k.part in parts)

    def bytes(self, part: str) -> int:
        """Returns the bytes that the kernels of a part read and write."""
        return sum(k.bytes for k in self.stop if k.part == part)

    @property
    def seconds(self) -> tuple[float, float]:
        """The modelled time of the step, and of the lean floor."""
        return sum(k.seconds for k in self.stop), sum(k.seconds for k in self.lean)


def count_step(
    make_clip: Callable[[], FrozenClip],
    videos: int,
    frames: int,
    attention: Attention,
    *,
    bf16: bool,
) -> Step:
    """Counts one training step of STOP on a CLIP, and one of the lean floor.

    The parts are embed (frames to the first tokens, and the last tokens to the loss), prompting and
    block (the forward pass), and backward.
    """
    with as_on_a_gpu(), FakeTensorMode(allow_non_fake_inputs=True):
        model = StopModel(make_clip(), StopConfig(attention=attention)).train()
        size = model.image_size
        pixels = torch.zeros(videos, frames, size, size, 3, dtype=torch.uint8)
        texts = torch.zeros(400, model.tower.embedding_width)
        labels = torch.zeros(videos, dtype=torch.long)
        precision = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        lean, count = CountKernels("lean"), CountKernels("embed")
        with precision:
            model(pixels, texts)  # folds the weights of the blocks
        tokens = model.first_tokens(pixels, attention).packed.requires_grad_()
        floor = LeanTower(model.tower, bf16)
        with lean:
            with precision:
                loss = floor(tokens)[:, 0].float().sum()
            loss.backward()  # type: ignore[no-untyped-call]
        prompt, run_block = model.prompt, model.tower.run_block
        model.prompt = count.within("prompting", prompt)  # type: ignore[method-assign]
        model.tower.run_block = count.within("block", run_block)  # type: ignore[method-assign]
        weights = {*_weights(model)}
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved[storage._cdata] = storage
            return tensor

        with count:
            with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = F.cross_entropy(model(pixels, texts), labels)
            count.part = "backward"
            loss.backward()  # type: ignore[no-untyped-call]
        bytes_ = sum(storage.nbytes() for storage in saved.values())
        return Step(count.kernels, lean.kernels, model.prompted_blocks, bytes_)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Has the model take the paths of a GPU, and fold weights that have no data."""
    folded: dict[tuple[object, ...], FoldedBlock] = {}

    def fold(
        tower: FrozenTower, index: int, dtype: torch.dtype, *, hiding: bool = False
    ) -> FoldedBlock:
        key = id(tower), index, dtype, hiding
        if key not in folded:
            folded[key] = FoldedBlock(tower.blocks[index], dtype, None, hiding=hiding)
        tower._folded_blocks[index, dtype, hiding] = folded[key]
        return folded[key]

    with (
        patch.object(tower_module, "_cpu_has", lambda _: True),
        patch.object(tower_module, "_hides_by_channel", lambda _: True),
        patch.object(FrozenLinear, "_is_plain", lambda *_: True),
        patch.object(FrozenTower, "_folded", fold),
        patch.object(torch.nn.Module, "to", lambda module, *_, **__: module),
    ):
        yield


def _weights(model: StopModel) -> Iterator[int]:
    """Yields the storages that are no activations."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor.untyped_storage()._cdata
    for folded in model.tower._folded_blocks.values():
        for linear in (folded.qkv, folded.out, folded.fc, folded.proj):
            yield from (t.untyped_storage()._cdata for t in (linear.weight, linear.bias))


@dataclass(frozen=True)
class KernelBenchmark:
    """Count the kernels and bytes of a STOP training step, and print a Markdown table."""

    towers: tuple[str, ...] = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu")
    """Any open_clip ViTs, with random weights."""
    videos: tuple[int, ...] = (64, 32)
    """Videos per step, one number per tower."""
    frames: int = 12
    """Frames per video."""
    attention: tuple[Attention, ...] = ("frame", "joint")
    """joint, frame or both."""
    precision: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    """Mixed precision, float32 or both."""
    operations: bool = False
    """Also print the operations of the prompting and of the backward pass by count."""


def main(options: KernelBenchmark) -> None:
    """Prints one row per tower, attention and precision."""
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for tower, videos in zip(options.towers, options.videos, strict=True):
        for attention in options.attention:
            for precision in options.precision:
                bf16 = precision == "bf16"
                make_clip = partial(load_clip, tower, "random")
                step = count_step(make_clip, videos, options.frames, attention, bf16=bf16)
                setting = f"{tower}, {videos} x {options.frames}, {attention}, {precision}"
                print("| " + " | ".join((setting, *_row(step, videos))) + " |", flush=True)
                if options.operations:
                    _print_operations(step)


HEADER = (
    "tower, videos x frames, attention, precision",
    "kernels: prompting of a block",
    "blocks",
    "embedding and loss",
    "backward",
    "step",
    "lean",
    "bytes, prompting / blocks (GB)",
    "saved, MiB per video",
    "modelled ms, step / lean",
)


def _row(step: Step, videos: int) -> tuple[str, ...]:
    of_prompting, of_blocks = step.bytes("prompting") / 1e9, step.bytes("block") / 1e9
    stop, lean = (1e3 * seconds for seconds in step.seconds)
    return (
        f"{step.kernels('prompting') / step.prompted_blocks:.1f}",
        *(str(step.kernels(part)) for part in ("block", "embed", "backward")),
        str(step.kernels()),
        str(sum(k.kernels for k in step.lean)),
        f"{of_prompting / of_blocks:.2f} ({of_prompting:.1f} / {of_blocks:.1f})",
        f"{step.saved / videos / 2**20:.0f}",
        f"{stop / lean:.2f} ({stop:.1f} / {lean:.1f})",
    )


def _print_operations(step: Step) -> None:
    for part in ("prompting", "block", "backward"):
        kernels, moved, seconds = Counter[str](), Counter[str](), Counter[str]()
        for k in step.stop:
            if k.part == part:
                kernels[k.name] += k.kernels
                moved[k.name] += k.bytes
                seconds[k.name] += k.seconds
        for name, number in kernels.most_common():
            gigabytes, milliseconds = moved[name] / 1e9, 1e3 * seconds[name]
            print(f"{part}: {name}: {number}, {gigabytes:.2f} GB, {milliseconds:.2f} ms")


if __name__ == "__main__":
    main(tyro.cli(KernelBenchmark))
