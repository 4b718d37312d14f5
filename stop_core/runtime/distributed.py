"""The collective operations of a training; without torch.distributed each handles one process."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def my_share(items: Sequence[_T], number: int | None = None) -> Sequence[_T]:
    """Returns every `world_size`-th item from this rank, or `number`, on; they form a partition."""
    return items[rank() if number is None else number :: world_size()]


def my_block(items: Sequence[_T], number: int | None = None) -> Sequence[_T]:
    """Returns consecutive items, as many as `my_share`; the blocks form a partition."""
    number = rank() if number is None else number
    size, rest = divmod(len(items), world_size())
    start = number * size + min(number, rest)
    return items[start : start + size + (number < rest)]


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Sets the tensors of every process to those of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def broadcast_object(value: _T) -> _T:
    """Returns the `value` of rank 0, on every process."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_objects(value: _T) -> list[_T]:
    """Returns the values of all processes in the order of their ranks, on every process."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor, positions: Sequence[int], total: int) -> Tensor:
    """Joins the rows of all processes into one tensor of `total` rows, on the CPU.

    `positions` are the numbers of this process's rows in the result. ValueError if one is missing.
    """
    parts = gather_objects((rows.cpu(), list(positions)))
    held = [position for _, part in parts for position in part]
    if sorted(held) != list(range(total)):
        raise ValueError(
            f"the processes have {len(held)} rows where each of {total} is needed once"
        )
    joined = torch.empty(total, *rows.shape[1:], dtype=rows.dtype)
    for part, where in parts:
        joined[torch.tensor(where, dtype=torch.long)] = part
    return joined


def all_rows(rows: Tensor) -> Tensor:
    """Joins the rows [B, ...] of all processes in the order of their ranks, without a gradient.

    A collective operation: every process calls it, even if it has no rows. Returns [G, ...]; G is
    the sum of B. Raises ValueError on every process if the rows of two processes differ in size.
    """
    return rows.detach() if world_size() == 1 else _join(rows, _row_counts(rows))


def gather_with_gradient(rows: Tensor) -> Tensor:
    """`all_rows` with gradients, for a loss that compares rows of different processes.

    Each process computes its own part of the loss from the gathered rows. The gradient of a row is
    the sum over all parts, so that after a `GradientSum` a parameter has that of their sum.

    Backward is a collective operation, too: every process must call `backward()` on a result that
    depends on the gathered rows, even if it has no rows. Gather related tensors in one call: the
    gradients of two calls could be sent in a different order on another process.
    """
    if world_size() == 1:
        return rows
    # A process without rows may have no tensor that requires a gradient, and still has to take part
    # in backward: the anchor ensures it.
    anchor = torch.empty(0, device=rows.device, requires_grad=True)
    return cast(Tensor, _Gather.apply(rows, anchor))


# torch.distributed.nn.functional.all_gather is deprecated and requires equal numbers of rows.
class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, anchor: Tensor) -> Tensor:
        ctx.counts = _row_counts(rows)
        return _join(rows, ctx.counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.counts)[rank()], None


def _row_counts(rows: Tensor) -> list[int]:
    """Returns the number of rows of every process; refuses rows of different sizes."""
    mine = torch.tensor([len(rows), math.prod(rows.shape[1:])], device=rows.device)
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    counts, sizes = torch.stack(parts).T.tolist()
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the rows of processes 0, 1, ... hold {sizes} numbers each; give rows of one size, "
            "even if there are none"
        )
    return list(counts)


def _join(rows: Tensor, counts: list[int]) -> Tensor:
    # gloo gathers tensors of equal shape only, so every share is padded to the longest.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def sum_in_place(values: Tensor) -> Tensor:
    """Replaces the values by their sums over the processes, and returns them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Returns the sum of each value over the processes."""
    sums: list[float] = sum_in_place(torch.tensor(values, dtype=torch.float64).to(device)).tolist()
    return sums
