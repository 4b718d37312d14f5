"""Every symbol of the paper for one prompted block (STOP, CVPR 2025, sections 3.2 and 3.3)."""

from dataclasses import dataclass, fields

from torch import Tensor

from stop_core.model.spatial import SpatialPrompts
from stop_core.model.temporal import TemporalPrompts


@dataclass(frozen=True)
class PromptTrace:
    """All quantities that the prompting at the input of one block computes.

    Shapes: B videos, T frames, P patches per frame, D channels, K maximum prompts per gap.
    """

    h: Tensor  # [B, T, P, D] patch tokens that enter the block, before prompting
    A: Tensor  # [B, T, P] CLS-to-patch attention, as mixed into W_s
    M: Tensor  # [B, T, P] temporal dynamics, as mixed into W_s
    W_s: Tensor  # [B, T, P] alpha * A + (1 - alpha) * M
    r: Tensor  # [B, T, P] 1 for selected patches, else 0
    p_s: Tensor  # [B, T, P, D] spatial prompts of all patches
    h_s: Tensor  # [B, T, P, D] h + r * p_s
    d: Tensor  # [B, T-1, P, D] frame differences
    W_t: Tensor  # [B, T-1] weight of the change, as multiplied by eta
    N_t: Tensor  # [B, T-1] number of prompts in the gap
    p_t: Tensor  # [B, T-1, K, D] prompts of all slots
    p_t_mask: Tensor  # [B, T-1, K] True for the first N_t slots
    A_raw: Tensor  # [B, T, P] before normalisation
    M_raw: Tensor  # [B, T, P] before normalisation
    W_t_raw: Tensor  # [B, T-1] before normalisation

    def video(self, index: int) -> "PromptTrace":
        """Returns the trace of one video, as if only it had been traced; IndexError without it."""
        if not 0 <= index < len(self.h):
            raise IndexError(f"video {index} of a trace of {len(self.h)} videos, numbered from 0")
        return PromptTrace(**{f.name: getattr(self, f.name)[[index]] for f in fields(self)})

    @classmethod
    def of(cls, h: Tensor, spatial: SpatialPrompts, temporal: TemporalPrompts) -> "PromptTrace":
        """Joins the tokens `h` and the results of both kinds of prompting (`every_prompt` set)."""
        names = {f.name for f in fields(cls)} - {"h"}
        sources = {name: spatial if hasattr(spatial, name) else temporal for name in names}
        return cls(h=h, **{name: getattr(source, name) for name, source in sources.items()})
