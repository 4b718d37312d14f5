"""An exponential moving average of the learned tensors.

Not `torch.optim.swa_utils.AveragedModel`: that would copy and average the frozen towers as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stop_core.model.video_model import VideoModel


class MovingAverage:
    """The average of the trainable tensors over the steps, which can replace them in evaluation.

    After step s (from 1) the average is `d * average + (1 - d) * weights`, with d the smaller of
    `decay` and s / (s + 9), so that the random initialisation has little weight. With decay 0,
    there is no average.
    """

    def __init__(self, model: VideoModel, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average = model.prompt_state_dict() if decay else {}

    @torch.no_grad()
    def update(self, steps_done: int) -> None:
        """Adds the weights after `steps_done` steps to the average."""
        if self.average:
            weights, decay = self.model.learned(), min(self.decay, steps_done / (steps_done + 9))
            # All at once: a GPU would start a kernel for each.
            averages = list(self.average.values())
            torch._foreach_lerp_(averages, [weights[name] for name in self.average], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Returns a context in which the weights of the model are the average."""
        if not self.average:
            yield
            return
        trained = self.model.prompt_state_dict()
        self.model.load_prompt_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_prompt_state_dict(trained)

    def load(self, average: dict[str, Tensor]) -> None:
        """Sets the average to that of a checkpoint; ValueError if it has other tensors."""
        if average.keys() != self.average.keys():
            raise ValueError("the checkpoint is of a training with another `ema`")
        for name, value in average.items():
            self.average[name].copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """Returns copies of the weights to evaluate: the average, if there is one."""
        if not self.average:
            return self.model.prompt_state_dict()
        return {name: average.clone() for name, average in self.average.items()}
