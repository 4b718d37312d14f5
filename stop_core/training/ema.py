"""An exponential moving average of the prompts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stop_core.model.video_model import VideoModel


class MovingAverage:
    """Averages the trainable tensors over the steps, in place of which they can be evaluated.

    After step s (from 1) the average is `d * average + (1 - d) * weights`, with d the smaller of
    `decay` and s / (s + 9), so that the random start is soon forgotten.

    Args:
        model: whose trainable tensors are averaged.
        decay: from 0, which keeps no average, up to but not including 1.
    """

    def __init__(self, model: VideoModel, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average = model.prompt_state_dict() if decay else {}

    @torch.no_grad()
    def update(self, steps_done: int) -> None:
        """Takes the weights after so many steps into the average."""
        decay = min(self.decay, steps_done / (steps_done + 9))
        for name, average in self.average.items():
            average.lerp_(self.model.trainable()[name], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average as its weights inside of this context."""
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
        """Sets the average to that of a checkpoint."""
        if average.keys() != self.average.keys():
            raise ValueError("the checkpoint is of a training with another `ema`")
        for name, value in average.items():
            self.average[name].copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights that are evaluated: the average, or without one the model's own."""
        if not self.average:
            return self.model.prompt_state_dict()
        return {name: average.clone() for name, average in self.average.items()}
