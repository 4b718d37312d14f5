"""The regions, maps, prompts and prediction of a trained STOP for one video.

Shapes: T frames of S x S pixels, G = T - 1 gaps, P patches of a frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stop_core.evaluation.run_over import device_of
from stop_core.model.trace import PromptTrace
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import autocast
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig

MOST_ANSWERS = 5


@runtime_checkable
class Traceable(Protocol):
    """A model that returns the symbols of the paper for every prompted block."""

    def trace(self, frames: Tensor) -> list[PromptTrace]:
        """uint8 frames [B, T, S, S, 3] -> one trace per prompted block."""
        ...


@dataclass(frozen=True)
class Answer:
    """One class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Explanation:
    """The symbols of one prompted block for one video, ready to draw. Names as in the paper."""

    title: str
    tower: str
    config: StopConfig
    block: int
    """Number of the block, from 1."""
    blocks: int
    """Number of prompted blocks."""
    pictures_THWC: NDArray[np.uint8]
    """The frames to draw on, squares of any size."""
    times_T: NDArray[np.float32] | None
    """Seconds from the start of the video."""
    A_TP: NDArray[np.float32]
    M_TP: NDArray[np.float32]
    W_s_TP: NDArray[np.float32]
    chosen_TP: NDArray[np.bool_]
    """r: the patches that have a spatial prompt."""
    W_t_G: NDArray[np.float32]
    N_t_G: NDArray[np.int64]
    answers: tuple[Answer, ...]
    """The most probable classes, best first; empty without classes."""
    truth: str | None = None
    """The true class, if it is known."""

    @property
    def side(self) -> int:
        """Patches along an edge of a frame."""
        return math.isqrt(self.A_TP.shape[1])


def explain(
    model: VideoModel,
    config: ExperimentConfig,
    frames_TSSC: Tensor,
    *,
    title: str,
    block: int | None = None,
    answers: Sequence[Answer] = (),
    pictures_THWC: NDArray[np.uint8] | None = None,
    times_T: NDArray[np.float32] | None = None,
    truth: str | None = None,
) -> Explanation:
    """Traces a model, such as STOP, on one clip, the model's input as uint8.

    `block` is the number of the prompted block, from 1, by default the last one. Other arguments
    are fields of the result; the default of `pictures_THWC` is the input. Raises ValueError if the
    model has no such prompts, or no such block.
    """
    if not isinstance(model, Traceable):
        raise ValueError(
            "this model has no regions and no temporal prompts to show; explain a model of the "
            "method stop"
        )
    frames = frames_TSSC[None].to(device_of(model))
    with autocast(config, frames.device):
        traces = model.trace(frames)
    number = len(traces) if block is None else block
    if not 1 <= number <= len(traces):
        raise ValueError(f"block must be from 1 to {len(traces)}, the prompted ones; got {block}")
    one = traces[number - 1]
    return Explanation(
        title=title,
        tower=config.tower,
        config=config.stop,
        block=number,
        blocks=len(traces),
        pictures_THWC=frames_TSSC.numpy() if pictures_THWC is None else pictures_THWC,
        times_T=times_T,
        A_TP=one.A[0].float().cpu().numpy(),
        M_TP=one.M[0].float().cpu().numpy(),
        W_s_TP=one.W_s[0].float().cpu().numpy(),
        chosen_TP=one.r[0].bool().cpu().numpy(),
        W_t_G=one.W_t[0].float().cpu().numpy(),
        N_t_G=one.N_t[0].long().cpu().numpy(),
        answers=tuple(answers),
        truth=truth,
    )


def best_answers(
    probability_C: Tensor, labels: Sequence[str], most: int = MOST_ANSWERS
) -> tuple[Answer, ...]:
    """Returns the `most` most probable classes, best first."""
    values, numbers = probability_C.cpu().topk(min(most, len(labels)))
    return tuple(
        Answer(labels[number], value)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
    )
