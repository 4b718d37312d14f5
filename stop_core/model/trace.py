"""Every symbol of the paper, for one prompted block of one batch."""

from dataclasses import dataclass, fields

from torch import Tensor

from stop_core.model.spatial import SpatialPrompts
from stop_core.model.temporal import TemporalPrompts


@dataclass(frozen=True)
class PromptTrace:
    """What the prompting at the input of one block computed.

    Shapes: B videos, T frames, P patches of a frame, D channels, K most prompts in one gap.
    """

    h: Tensor  # [B, T, P, D] patch tokens that enter the block, before prompting
    A: Tensor  # [B, T, P] CLS-to-patch attention, as mixed into W_s
    M: Tensor  # [B, T, P] temporal dynamics, as mixed into W_s
    W_s: Tensor  # [B, T, P]
    r: Tensor  # [B, T, P] 1 where a patch is chosen, else 0
    p_s: Tensor  # [B, T, P, D] spatial prompts of all patches
    h_s: Tensor  # [B, T, P, D] h + r * p_s
    d: Tensor  # [B, T-1, P, D] frame differences
    W_t: Tensor  # [B, T-1] as multiplied by eta
    N_t: Tensor  # [B, T-1] prompts in the gap
    p_t: Tensor  # [B, T-1, K, D] prompts of all slots
    p_t_mask: Tensor  # [B, T-1, K] True for the first N_t slots
    A_raw: Tensor  # [B, T, P] before normalisation
    M_raw: Tensor  # [B, T, P] before normalisation
    W_t_raw: Tensor  # [B, T-1] before normalisation

    def video(self, index: int) -> "PromptTrace":
        """The trace of one video of the batch, from 0: what tracing that video alone would give.

        Raises:
            IndexError: if the batch has no such video.
        """
        if not 0 <= index < len(self.h):
            raise IndexError(f"video {index} of a trace of {len(self.h)} videos, numbered from 0")
        return PromptTrace(**{f.name: getattr(self, f.name)[[index]] for f in fields(self)})

    @classmethod
    def of(cls, h: Tensor, spatial: SpatialPrompts, temporal: TemporalPrompts) -> "PromptTrace":
        """Joins what the two kinds of prompting computed from the tokens `h`."""
        if spatial.p_s is None:
            raise ValueError("a trace needs the prompts of all patches; ask for `every_prompt`")
        return cls(
            h=h,
            A=spatial.A,
            M=spatial.M,
            W_s=spatial.W_s,
            r=spatial.r,
            p_s=spatial.p_s,
            h_s=spatial.h_s,
            d=temporal.d,
            W_t=temporal.W_t,
            N_t=temporal.N_t,
            p_t=temporal.p_t,
            p_t_mask=temporal.p_t_mask,
            A_raw=spatial.A_raw,
            M_raw=spatial.M_raw,
            W_t_raw=temporal.W_t_raw,
        )
