"""The sum of the gradients over the processes, sent in buckets while the backward pass runs."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stop_core.runtime.distributed import broadcast_object, world_size

BUCKET_BYTES = 25 * 2**20
"""A bucket is closed when it has this size, which is DistributedDataParallel's default."""


class GradientSum:
    """Replaces every gradient by its sum over the processes.

    A context around the last backward pass of a step, which sends a bucket of gradients as soon as
    they are complete; the pass may contain collective operations (`gather_with_gradient`) if all of
    these gradients follow from them. `finish` sends the rest, and waits for all.

    DistributedDataParallel does the same for one forward pass of one module. Here a step can have
    several (videos and texts, gradient caching), or none if a process has no clips. DDP also
    rebuilds its buckets after the first step, so that a resumed training would round differently.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        # Reversed, because the gradients of the last layers are complete first.
        self._buckets = _in_buckets(list(parameters)[::-1]) if world_size() > 1 else []
        self._order = list(range(len(self._buckets)))
        self._knows_order = False
        self._unused: list[nn.Parameter] = []
        self._is_open = False
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(self._complete, number))
        self._restart()

    def _restart(self) -> None:
        self._missing = [{id(parameter) for parameter in bucket} for bucket in self._buckets]
        self._full: list[int] = []
        self._sent: list[Any] = []

    def __enter__(self) -> None:
        self._is_open = True

    def __exit__(self, *error: object) -> None:
        self._is_open = False

    def finish(self) -> None:
        """Sends the remaining buckets and waits; a collective operation, before any other one.

        A parameter without a gradient in the first step keeps none, as in one process: of a
        gradient of zero, weight decay would be left.
        """
        is_first = bool(self._buckets) and not self._knows_order
        parameters = [one for bucket in self._buckets for one in bucket] if is_first else []
        missing = [number for number, one in enumerate(parameters) if one.grad is None]
        for number in self._order[len(self._sent) :]:
            self._send(number)
        for work in self._sent:
            work.wait()
        if is_first:
            # Which tower comes first depends on the method. The order is that of a process which
            # always has clips, and does not affect the sums.
            rest = [number for number in self._order if number not in self._full]
            self._order, unused = broadcast_object((self._full + rest, missing))
            self._unused = [parameters[number] for number in unused]
            self._knows_order = True
        for parameter in self._unused:
            parameter.grad = None
        self._restart()

    def _complete(self, number: int, parameter: Tensor) -> None:
        """Notes that a gradient is complete, and sends the buckets that are full, in order."""
        if any(parameter is one for one in self._unused):
            raise RuntimeError("a parameter has a gradient that had none in the first step")
        if not self._is_open:
            return
        self._missing[number].remove(id(parameter))
        if not self._missing[number]:
            self._full.append(number)
        for following in self._order[len(self._sent) :]:
            if self._missing[following]:
                break
            self._send(following)

    def _send(self, number: int) -> None:
        bucket = self._buckets[number]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        for parameter, part in zip(bucket, message.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)  # so that nothing is copied back
        self._sent.append(dist.all_reduce(message, async_op=True))


def _in_buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Divides parameters into runs of one type; the same on every process and in every session."""
    buckets: list[list[nn.Parameter]] = []
    size = BUCKET_BYTES
    for parameter in parameters:
        if size >= BUCKET_BYTES or parameter.dtype != buckets[-1][-1].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets
