"""The loss and gradient of a batch do not depend on the size of its micro-batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.training.backward import backward, largest_that_fits
from stop_core.training.objectives import Measured, Objective

CLIPS = [5, 2, 7, 0, 3, 9, 4]
TOTAL = 11  # with the clips of other processes
CLOSE = {"rtol": 0, "atol": 1e-12}


class Toy(Objective):
    """A linear map with dropout whose outputs depend on the clip and the epoch."""

    chosen_by = "top1"

    def __init__(self, *, additive: bool, dropout: float = 0.0, most: int = 100) -> None:
        self.additive = additive
        self.most = most
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4).double()
        self.dropout = nn.Dropout(dropout)
        self.tried: list[int] = []

    def outputs(self, frames: Tensor, clips: Sequence[int], epoch: int) -> Tensor:
        self.tried.append(len(frames))
        if len(frames) > self.most:
            raise torch.OutOfMemoryError
        rows = self.layer(frames.flatten(1).double() / 255)
        return self.dropout(rows) * torch.tensor([[1.0 + clip + epoch] for clip in clips])

    def no_outputs(self) -> Tensor:
        return torch.empty(0, 4).double()

    def loss(self, outputs: Tensor, clips: Sequence[int], epoch: int, total: int) -> Tensor:
        weight = torch.tensor([1.0 / (1 + clip + epoch) for clip in clips]).double()
        own = (outputs.square().sum(1) * weight).sum() / total
        if self.additive:
            return own
        return own + F.softmax(outputs @ outputs.T, 1).diagonal().log().sum() / total

    def measure(self, clips: Any) -> Measured:
        raise NotImplementedError

    @property
    def gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.layer.parameters()]


def frames_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 1, 2, 1, 3), generator=generator, dtype=torch.uint8)


def seed(part: int) -> None:
    torch.manual_seed(100 + part)


def wanted(toy: Toy, size: int) -> float:
    """Computes the loss and its gradient with a single graph for all parts."""
    frames, rows = frames_of(len(CLIPS)), []
    for part, start in enumerate(range(0, len(CLIPS), size)):
        seed(part)
        rows.append(toy.outputs(frames[start : start + size], CLIPS[start : start + size], 3))
    loss = toy.loss(torch.cat(rows), CLIPS, 3, TOTAL)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("size", [*range(1, len(CLIPS) + 2), None])
def test_loss_and_gradient_are_those_of_one_graph(
    size: int | None, additive: bool, dropout: float
) -> None:
    ours, plain = (Toy(additive=additive, dropout=dropout) for _ in range(2))
    frames = frames_of(len(CLIPS))
    loss = backward(ours, frames, CLIPS, epoch=3, total=TOTAL, micro_batch=size, seed=seed)
    assert loss == pytest.approx(wanted(plain, size or len(CLIPS)), rel=1e-12)
    torch.testing.assert_close(ours.gradients, plain.gradients, **CLOSE)
    assert all(count <= (size or len(CLIPS)) for count in ours.tried)


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("size", [1, 3, 4, None])
def test_the_gradient_of_the_last_part_alone_is_computed_within_the_last_context(
    size: int | None, additive: bool
) -> None:
    toy, within = Toy(additive=additive), []

    @contextmanager
    def last() -> Iterator[None]:
        before = [None if one is None else one.clone() for one in toy.gradients]
        yield
        within.append(before)

    frames = frames_of(len(CLIPS))
    options = {"epoch": 0, "total": TOTAL, "micro_batch": size, "last": last()}
    backward(toy, frames, CLIPS, **options)  # type: ignore[arg-type]
    (before,) = within
    assert (before[0] is None) == (size is None)
    if size is not None and additive:
        done, earlier = (len(CLIPS) - 1) // size * size, Toy(additive=True)
        backward(earlier, frames[:done], CLIPS[:done], epoch=0, total=TOTAL)
        torch.testing.assert_close(before, earlier.gradients, **CLOSE)


@pytest.mark.parametrize("additive", [True, False])
def test_gradients_are_added_to_those_that_are_there(additive: bool) -> None:
    toy = Toy(additive=additive)
    frames = frames_of(len(CLIPS))
    for times in (1, 2):
        backward(toy, frames, CLIPS, epoch=0, total=TOTAL, micro_batch=2)
        if times == 1:
            once = [gradient.clone() for gradient in toy.gradients if gradient is not None]
    torch.testing.assert_close(toy.gradients, [2 * gradient for gradient in once], **CLOSE)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("additive", [True, False])
def test_a_share_of_no_clips_has_no_gradient_and_takes_part_in_the_loss(
    additive: bool, micro_batch: int | None
) -> None:
    toy, taken = Toy(additive=additive), []
    plain_loss = toy.loss
    toy.loss = lambda *arguments: taken.append(1) or plain_loss(*arguments)  # type: ignore[method-assign,assignment]
    frames = frames_of(0)
    assert backward(toy, frames, [], epoch=0, total=TOTAL, micro_batch=micro_batch) == 0
    assert taken == [1]
    assert toy.tried == []
    assert toy.gradients == [None, None]


@pytest.mark.parametrize("clips", [1, 2, 7, 12])
@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 100])
def test_the_largest_that_fits_is_found_by_halving(clips: int, most: int) -> None:
    toy = Toy(additive=True, most=most)
    halves = [clips // 2**power for power in range(1, 6)]
    assert largest_that_fits(toy, frames_of(clips), 0) == max(
        (half for half in halves if half <= most), default=0
    )
    assert all(tried in halves for tried in toy.tried)
