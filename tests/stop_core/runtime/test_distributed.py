"""Dividing a batch among processes changes nothing but the rounding."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from stop_core.runtime.distributed import (
    all_rows,
    broadcast_object,
    copy_from_first,
    gather_objects,
    gather_rows,
    gather_with_gradient,
    my_block,
    my_share,
    sum_over_processes,
)
from stop_core.runtime.gradient_sum import GradientSum
from tests.stop_core.processes import run_together


def test_a_single_process_has_everything() -> None:
    assert list(my_share([3, 1, 2])) == [3, 1, 2]
    assert sum_over_processes([1.0, 2.0], torch.device("cpu")) == [1.0, 2.0]
    rows = torch.randn(2, 3, requires_grad=True)
    assert torch.equal(all_rows(rows), rows)
    assert not all_rows(rows).requires_grad
    assert gather_with_gradient(rows) is rows


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_shares_and_blocks_are_equal_partitions(
    processes: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stop_core.runtime.distributed.world_size", lambda: processes)
    items = list(range(count))
    shares = [my_share(items, number) for number in range(processes)]
    blocks = [my_block(items, number) for number in range(processes)]
    assert [*chain(*blocks)] == sorted(chain(*shares)) == items
    assert [len(block) for block in blocks] == [len(share) for share in shares]
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert (my_share(items), my_block(items)) == (shares[0], blocks[0])  # rank 0


def test_gathered_rows_are_in_the_order_of_their_positions() -> None:
    rows = torch.tensor([[1.0], [0.0], [2.0]])
    assert torch.equal(gather_rows(rows, [1, 0, 2], 3), torch.tensor([[0.0], [1.0], [2.0]]))


@pytest.mark.parametrize("positions", [[0, 0, 1], [0, 1, 3]])
def test_a_missing_or_duplicate_row_is_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="needed once"):
        gather_rows(torch.zeros(3, 1), positions, 3)


ROWS_GXY = torch.arange(24.0).sin().view(4, 3, 2)
SHARES = [(2, 1, 1), (1, 3, 0), (0, 0, 4)]


def _sum_and_gather(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    batch = torch.arange(15.0).view(5, 3)
    mine = list(my_share(range(5)))
    if rank < 2:  # the share of the third process is empty
        mine = list(range(rank, 5, 2))
        (layer(batch[mine]).square().sum() / 5).backward()
    else:
        mine = []
    GradientSum(layer.parameters()).finish()
    rows = gather_rows(batch[mine], mine, 5)
    (count,) = sum_over_processes([float(len(mine))], torch.device("cpu"))
    uneven = [_gather_share(shares, rank) for shares in SHARES]
    with pytest.raises(ValueError, match=r"hold \[2, 3, 4\] numbers"):
        all_rows(torch.zeros(0, 2 + rank))
    own = torch.tensor([float(rank + 1)], requires_grad=True)
    copy_from_first([own])
    told = {"first": own.item(), "word": broadcast_object(rank + 1), "all": gather_objects(rank)}
    return {"gradient": layer.weight.grad, "rows": rows, "count": count, "uneven": uneven, **told}


def _gather_share(shares: Sequence[int], rank: int) -> dict[str, Any]:
    mine = ROWS_GXY.split(list(shares))[rank].clone()
    mine.requires_grad_(len(mine) > 0)  # a process without rows has no graph either
    gathered = gather_with_gradient(mine)
    _part(gathered, rank).backward()
    numbers = all_rows(torch.arange(4).split(list(shares))[rank] + 2**40)
    return {"rows": gathered.detach(), "gradient": mine.grad, "numbers": numbers}


def _part(gathered_GXY: Tensor, rank: int) -> Tensor:
    """Returns a part of a loss over all pairs of rows, different for every process."""
    rows_GD = gathered_GXY.flatten(1)
    return ((rows_GD @ rows_GD.T) ** (rank + 2)).sum()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of three processes, which are started once for all tests."""
    return run_together(_sum_and_gather, 3, tmp_path_factory.mktemp("processes"))


def test_three_processes_give_the_gradient_and_the_rows_of_one(
    found: list[dict[str, Any]],
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    batch = torch.arange(15.0).view(5, 3)
    (layer(batch).square().sum() / 5).backward()
    for process in found:
        torch.testing.assert_close(process["gradient"], layer.weight.grad)
        assert torch.equal(process["rows"], batch)
        assert process["count"] == 5


@pytest.mark.parametrize("case", range(len(SHARES)), ids=[str(shares) for shares in SHARES])
def test_uneven_shares_are_gathered_in_order_with_the_gradients_of_all_parts(
    found: list[dict[str, Any]], case: int
) -> None:
    rows = ROWS_GXY.clone().requires_grad_(True)
    sum((_part(rows, rank) for rank in range(3)), torch.zeros(())).backward()
    assert rows.grad is not None
    for process, expected in zip(found, rows.grad.split(list(SHARES[case])), strict=True):
        held = process["uneven"][case]
        assert torch.equal(held["rows"], ROWS_GXY)
        assert torch.equal(held["numbers"], torch.arange(4) + 2**40)
        if len(expected):
            torch.testing.assert_close(held["gradient"], expected)


def test_every_process_gets_what_the_first_one_has_and_the_objects_of_all(
    found: list[dict[str, Any]],
) -> None:
    for process in found:
        assert (process["first"], process["word"], process["all"]) == (1, 1, [0, 1, 2])


def test_alone_a_process_tells_itself() -> None:
    assert broadcast_object("word") == "word"
    assert gather_objects("word") == ["word"]
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    copy_from_first(layer.parameters())
    GradientSum(layer.parameters()).finish()
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
