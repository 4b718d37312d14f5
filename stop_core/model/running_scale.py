"""A scale for the change W^t that is learned over the training clips (`normalize="running"`).

Shapes: B videos, T frames, P patches per frame.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_DECAY = 0.99
_ROUNDING = 2e-6  # differences below this share are float32 rounding, not signal

SumOverProcesses = Callable[[Sequence[float], torch.device], list[float]]


class RunningScale(nn.Module):
    """Divides the change in a gap by the running mean of the largest change in a training clip.

    `running` holds the decayed sum of these means and of their weights. It is part of a checkpoint,
    has no gradient, and moves only in `end_step`: so the result of a clip does not depend on its
    batch, and all processes have the same scale. Before the first step the scale is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(2))
        self.running: Tensor
        self._seen: Tensor | None = None  # sum of the largest changes of a clip, number of clips

    def forward(self, change: Tensor, rest: Tensor) -> Tensor:
        """Returns (W^t - rest) / scale, at least 0, [B, T-1].

        `rest` is the change that N^t measures between equal frames, which its biases make positive.
        Values above it by no more than float32 rounding become 0: `ceil` would give them a prompt.
        """
        above = change - rest
        fixed = above.detach()
        if self.training:
            largest = fixed.amax(-1).clamp(min=0).double()
            seen = torch.stack([largest.sum(), largest.new_tensor(float(len(largest)))])
            self._seen = seen if self._seen is None else self._seen + seen
        total, weight = self.running.to(change.dtype)
        scale = torch.where(total > 0, total / weight, 1.0)
        still = fixed <= _ROUNDING * (rest.detach().abs() + scale)
        return torch.where(still, above - fixed, above) / scale

    def end_step(self, sum_over_processes: SumOverProcesses) -> None:
        """Moves the scale by the clips of a training step, those of all processes together."""
        seen = [0.0, 0.0] if self._seen is None else self._seen.tolist()
        self._seen = None
        total, clips = sum_over_processes(seen, self.running.device)
        if clips:
            self.running.lerp_(self.running.new_tensor([total / clips, 1.0]), 1 - _DECAY)
