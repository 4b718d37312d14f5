"""The few collective operations of a training; each is a plain function for a single process."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def my_share(items: Sequence[T]) -> Sequence[T]:
    """Every `world_size`-th item, starting at this rank: the shares are disjoint and complete."""
    return items[rank() :: world_size()]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its sum over the processes.

    A process without a gradient (its share of the batch was empty) counts as zero. Only the
    prompting weights travel, a few MB, so one message for all of them is enough.
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


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Adds up each value over the processes."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.all_reduce(total)
    return [float(value) for value in total]
