"""Sharing a batch over processes changes nothing but the rounding."""

import multiprocessing as mp
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stop_core.distributed import gather_rows, my_share, sum_gradients, sum_over_processes


def test_alone_a_process_has_everything() -> None:
    assert list(my_share([3, 1, 2])) == [3, 1, 2]
    assert sum_over_processes([1.0, 2.0], torch.device("cpu")) == [1.0, 2.0]


def test_gathering_puts_rows_where_they_belong() -> None:
    rows = torch.tensor([[1.0], [0.0], [2.0]])
    assert torch.equal(gather_rows(rows, [1, 0, 2], 3), torch.tensor([[0.0], [1.0], [2.0]]))


@pytest.mark.parametrize("positions", [[0, 0, 1], [0, 1, 3]])
def test_a_row_missing_or_held_twice_is_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="needed once"):
        gather_rows(torch.zeros(3, 1), positions, 3)


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    batch = torch.arange(15.0).view(5, 3)
    mine = list(my_share(range(5)))
    if rank < 2:  # the third process has nothing to do in this step
        mine = list(range(rank, 5, 2))
        (layer(batch[mine]).square().sum() / 5).backward()
    else:
        mine = []
    sum_gradients(layer.parameters())
    rows = gather_rows(batch[mine], mine, 5)
    (count,) = sum_over_processes([float(len(mine))], torch.device("cpu"))
    torch.save({"gradient": layer.weight.grad, "rows": rows, "count": count}, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_three_processes_give_the_gradient_and_the_rows_of_one(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    workers = [context.Process(target=_work, args=(rank, 3, str(tmp_path))) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    batch = torch.arange(15.0).view(5, 3)
    (layer(batch).square().sum() / 5).backward()
    for rank in range(3):
        found = torch.load(tmp_path / str(rank))
        torch.testing.assert_close(found["gradient"], layer.weight.grad)
        assert torch.equal(found["rows"], batch)
        assert found["count"] == 5
