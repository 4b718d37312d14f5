"""Real processes that train together over gloo, for tests."""

import multiprocessing as mp
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Work = Callable[[int], Any]


def run_together(work: Work, processes: int, folder: Path) -> list[Any]:
    """Returns the results of `work(rank)` in each of the processes of one group.

    `work` is a function of a module, so that a new process can import it.
    """
    # One server imports PyTorch and the model for the processes of all tests.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "stop_core.model.methods", "stop_core.training.trainer"]
    )
    workers = [
        context.Process(target=_join_and_work, args=(work, rank, processes, str(folder)))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 200
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():  # it waits for another process that failed
            worker.kill()
            worker.join()
    assert [worker.exitcode for worker in workers] == [0] * processes
    return [torch.load(folder / str(rank)) for rank in range(processes)]


def _join_and_work(work: Work, rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    torch.save(work(rank), f"{folder}/{rank}")
    dist.destroy_process_group()
