"""Gradients are summed in buckets while the backward pass runs, to the sums of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from stop_core.runtime import gradient_sum
from stop_core.runtime.distributed import my_share
from stop_core.runtime.gradient_sum import GradientSum
from tests.stop_core.processes import run_together

WIDTH, DEPTH = 8, 3
LAYER = 4 * (WIDTH * WIDTH + WIDTH)  # bytes
BATCH = torch.arange(5.0 * WIDTH).sin().view(5, WIDTH)
STEPS = (5, 5, 1, 5)  # rows; in the third step, the second process has none


class _Towers(nn.Module):
    """Two towers of which the backward pass completes the last one last, and an unused tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unused = nn.Parameter(torch.ones(WIDTH, WIDTH))
        self.first = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))
        self.last = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))

    def backward(self, row: int) -> None:
        last = self.last(BATCH[row])
        (self.first(BATCH[row]).square().sum() + last.square().sum()).backward()

    def gradients(self) -> dict[str, Tensor]:
        return {n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}


def _sum(rank: int) -> list[dict[str, Any]]:
    """Sums in buckets of one layer; returns the messages of each step and the sums."""
    del rank
    gradient_sum.BUCKET_BYTES = LAYER
    towers, reduce = _Towers(), dist.all_reduce
    complete: list[Tensor] = []
    messages: list[tuple[int, int]] = []
    for parameter in towers.parameters():
        parameter.register_post_accumulate_grad_hook(complete.append)
    sums = GradientSum(towers.parameters())

    def record(message: Tensor, **options: Any) -> Any:
        messages.append((message.nbytes, len(complete)))
        return reduce(message, **options)

    dist.all_reduce = record
    found = []
    for count in STEPS:
        towers.zero_grad(set_to_none=True)
        mine = list(my_share(range(count)))
        for row in mine[:-1]:  # micro-batches
            towers.backward(row)
        assert not messages
        complete.clear()
        for row in mine[-1:]:
            with sums:
                towers.backward(row)
        during = len(messages)
        sums.finish()
        found.append({"messages": [*messages], "during": during, "sums": towers.gradients()})
        messages.clear()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The steps of two processes."""
    return run_together(_sum, 2, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_the_sums_are_the_gradients_of_one_process(
    found: list[list[dict[str, Any]]], step: int
) -> None:
    towers = _Towers()
    for row in range(STEPS[step]):
        towers.backward(row)
    expected = towers.gradients()
    for process in found:
        # A gradient of zero would let weight decay shrink the unused tensor.
        assert process[step]["sums"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(process[step]["sums"][name], gradient)


def test_every_bucket_is_one_message_and_is_sent_when_its_layer_is_complete(
    found: list[list[dict[str, Any]]],
) -> None:
    layers = 2 * DEPTH
    sizes = [LAYER] * layers + [LAYER - 4 * WIDTH]  # and the unused tensor
    # The first step finds the order of the layers; each has a weight and a bias.
    when = [[8, 10, 12, 12, 12, 12, 12], [2, 4, 6, 8, 10, 12, 12]]
    for process in found:
        for step, expected in zip(process, [when[0], when[1], when[1], when[1]], strict=True):
            has_rows = step["messages"][0][1] > 0
            assert step["during"] == (layers if has_rows else 0)
            assert [size for size, _ in step["messages"]] == sizes
            if has_rows:
                assert [complete for _, complete in step["messages"]] == expected
    assert [process[2]["during"] for process in found] == [layers, 0]


def _late(rank: int) -> str:
    towers = _Towers()
    sums = GradientSum(towers.parameters())
    towers.backward(rank)
    sums.finish()
    try:
        towers.unused.sum().backward()
    except RuntimeError as problem:
        return str(problem)
    return ""


def test_a_gradient_that_begins_after_the_first_step_is_not_dropped_silently(
    tmp_path: Path,
) -> None:
    for message in run_together(_late, 2, tmp_path):
        assert "a parameter has a gradient that had none in the first step" in message
