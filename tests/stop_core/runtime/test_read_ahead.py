"""Batches arrive in order, whichever thread reads a clip, and no thread outlives the reading."""

import threading
import time
from collections.abc import Sequence
from contextlib import closing

import pytest
import torch
from torch import Tensor

from stop_core.runtime.read_ahead import AHEAD, read_ahead

CPU = torch.device("cpu")
BATCHES = [[3, 1, 4], [], [1, 5, 9, 2], [6], [5, 3, 5, 8, 9, 7]]


class Numbered:
    """Clips whose pixels are their number; a few are read more slowly, some fail."""

    shape = (2, 4, 4, 3)
    source = None
    shards = ("train-00000",) * 10

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad
        self.read_clips: list[int] = []

    def __len__(self) -> int:
        return 10

    def read(self, indices: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        assert out is not None
        for row, index in zip(out, indices, strict=True):
            if index == self.bad:
                raise ValueError(f"clip {index} is damaged")
            time.sleep(0.002 * (index % 3))
            row.fill_(index)
            self.read_clips.append(index)
        return out


def _readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.fixture(params=[1, 2, 5])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


@pytest.mark.usefixtures("_threads")
def test_every_batch_arrives_in_order_with_its_clips_in_order() -> None:
    found = [frames[:, 0, 0, 0, 0].tolist() for frames in read_ahead(Numbered(), BATCHES, CPU)]
    assert found == BATCHES
    assert not _readers()


@pytest.mark.usefixtures("_threads")
def test_only_the_stated_number_of_batches_is_read_ahead() -> None:
    clips, batches = Numbered(), [[number] * 4 for number in range(10)]
    with closing(read_ahead(clips, batches, CPU)) as reads:
        for number, _ in enumerate(reads):
            time.sleep(0.02)  # time enough to read more, if it were allowed
            assert max(clips.read_clips) <= number + AHEAD
            if number == 5:
                break
    assert not _readers()


@pytest.mark.usefixtures("_threads")
def test_an_error_of_a_thread_is_raised_when_its_batch_is_due_and_ends_the_threads() -> None:
    reads = read_ahead(Numbered(bad=2), BATCHES, CPU)
    assert [len(next(reads)) for _ in range(2)] == [3, 0]
    with pytest.raises(ValueError, match=r"^clip 2 is damaged$"):
        next(reads)
    assert not _readers()


def test_threads_end_when_the_caller_stops_early_and_read_no_more() -> None:
    clips = Numbered()
    reads = read_ahead(clips, [[2] * 50] * 9, CPU)
    next(reads)
    reads.close()
    assert not _readers()
    assert len(clips.read_clips) < 50 * (1 + AHEAD)
