"""The few collective operations of a training; each is a plain function for a single process."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

_T = TypeVar("_T")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def my_share(items: Sequence[_T]) -> Sequence[_T]:
    """Every `world_size`-th item, starting at this rank: the shares are disjoint and complete."""
    return items[rank() :: world_size()]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its sum over the processes.

    A process without a gradient (its share of the batch was empty) counts as zero. Only the
    trainable weights travel, in one message: a few MB of prompts, or both towers with clip4clip.
    """
    if world_size() == 1:
        return
    present = list(parameters)
    for parameter in present:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in present if p.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    for gradient, part in zip(
        gradients, message.split([g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def copy_from_first(parameters: Iterable[nn.Parameter]) -> None:
    """Sets the parameters of every process to those of rank 0."""
    if world_size() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.detach(), src=0)


def told_by_first(value: _T) -> _T:
    """What rank 0 was called with, on every process."""
    told = [value]
    if world_size() > 1:
        dist.broadcast_object_list(told, src=0)
    return told[0]


def told_by_all(value: _T) -> list[_T]:
    """What each process was called with, in the order of their ranks, on every process."""
    told = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(told, value)
    return told


def gather_rows(rows: Tensor, positions: Sequence[int], total: int) -> Tensor:
    """Joins the rows that the processes hold into one tensor of `total` rows, on the CPU.

    Args:
        rows: this process's rows, [len(positions), ...].
        positions: where each of them belongs.
        total: the number of rows over all processes.

    Raises:
        ValueError: if a row is missing or held twice.
    """
    parts: list[tuple[Tensor, Sequence[int]]] = [(rows.cpu(), list(positions))]
    if world_size() > 1:
        gathered: list[tuple[Tensor, Sequence[int]] | None] = [None] * world_size()
        dist.all_gather_object(gathered, parts[0])
        parts = [part for part in gathered if part is not None]
    held = [position for _, part in parts for position in part]
    if sorted(held) != list(range(total)):
        raise ValueError(
            f"the processes hold {len(held)} rows where each of {total} is needed once"
        )
    joined = torch.empty(total, *rows.shape[1:], dtype=rows.dtype)
    for part, where in parts:
        joined[torch.tensor(where, dtype=torch.long)] = part
    return joined


def all_rows(rows: Tensor) -> Tensor:
    """Joins the rows of all processes in the order of their ranks, without a gradient.

    A collective operation: every process calls it, with as many rows as it has, also none.

    Args:
        rows: this process's rows, [B, ...]; type and device are alike on all processes.

    Returns:
        [G, ...], G the sum of B over the processes, alike on every process.

    Raises:
        ValueError: on every process, if the rows of two are not of one size.
    """
    return rows.detach() if world_size() == 1 else _join(rows, _row_counts(rows))


def gather_with_gradient(rows: Tensor) -> Tensor:
    """`all_rows` for a loss in which the rows of one process meet those of another.

    Each process computes its own part of the loss from the gathered rows. The gradient that comes
    back to a row is the sum of what all the parts give it, so that after `sum_gradients` a
    parameter has the gradient of the sum of the parts.

    Backward is a collective operation too: every process must call `backward()` on something that
    was computed from the result, also one that has no row. Gather what belongs together in one
    call: two could travel back in another order on another process.

    Args:
        rows: this process's rows of floats, [B, ...]; B may be 0.

    Returns:
        [G, ...], as `all_rows`.

    Raises:
        ValueError: as `all_rows`.
    """
    if world_size() == 1:
        return rows
    # A process without rows may hold nothing that needs a gradient, and must take part in
    # backward all the same: a tensor that needs one makes sure of it.
    anchor = torch.empty(0, device=rows.device, requires_grad=True)
    gathered: Tensor = _Gather.apply(rows, anchor)
    return gathered


# torch.distributed.nn.functional.all_gather is deprecated, and takes rows of equal number only.
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
    """How many rows every process has, where all agree on the size of a row."""
    mine = torch.tensor([len(rows), math.prod(rows.shape[1:])], device=rows.device)
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    counts, sizes = torch.stack(parts).T.tolist()
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the rows of processes 0, 1, ... hold {sizes} numbers each; give rows of one size, "
            "also where there are none of them"
        )
    return list(counts)


def _join(rows: Tensor, counts: list[int]) -> Tensor:
    # gloo gathers tensors of one shape only, so every share travels as long as the longest.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Adds up each value over the processes."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.all_reduce(total)
    return [float(value) for value in total]
