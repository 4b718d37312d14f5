"""The settings of STOP, with the names of the paper."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

Attention = Literal["joint", "frame", "global"]
Normalize = Literal["per_frame", "running", "none"]
Choice = Literal["learned", "random", "fixed", "lowest"]
SelectionMode = Literal["ste", "hard"]
Difference = Literal["prompted", "plain"]
_MOST = 4096  # a larger value would need more memory than any machine has


@dataclass(frozen=True)
class StopConfig:
    """Settings of the prompting layers (STOP, CVPR 2025, sections 3.2 and 3.3).

    Raises ValueError if a field is out of its range.
    """

    n_s: int = 6
    """N_s: number of patches per frame that get a spatial prompt; 0 turns spatial prompting off."""
    alpha: float = 0.5
    """Weight of the CLS attention A against the temporal dynamics M, from 0 to 1."""
    beta: float = 1.0
    """Extra weight of the selected patches in the measured change of a gap; at least 0."""
    eta: float = 4.0
    """Prompts per unit of change in a gap; 0 turns temporal prompting off."""
    max_prompts: int = 4
    """K: maximum number of temporal prompts in one gap."""
    spatial_width: int = 32
    """Hidden channels of the spatial prompter and of its selector."""
    temporal_width: int = 32
    """Hidden channels of the temporal prompter and of its selector."""
    depth: int | None = None
    """Prompt the inputs of the first `depth` blocks (default: all blocks)."""
    share: bool = False
    """Share one set of prompting weights among all prompted blocks, instead of one set each."""
    attention: Attention = "frame"
    """frame: each frame separately, embeddings averaged; joint: one CLS attends to all frames;
    global: learned tokens attend to all frames and every frame to them, as in the published code;
    the first is the video."""
    global_tokens: int = 4
    """Number of learned tokens, for attention global."""
    normalize: Normalize = "per_frame"
    """per_frame: A, M and W^t are rescaled to [0, 1] within a video; running: W^t is divided by its
    running mean over the training clips instead, so that a still clip gets no prompts in its gaps;
    none: as in the paper."""
    choose: Choice = "learned"
    """learned: the n_s patches with the largest W^s; lowest: those with the smallest; random: drawn
    in every frame; fixed: drawn once, the same in all frames and blocks. The last three are
    controls. With alpha 1 only the attention A chooses, with alpha 0 only the dynamics M."""
    selection: SelectionMode = "ste"
    """ste: straight-through gradients through the two selections; hard: none."""
    difference: Difference = "prompted"
    """Frame difference d of the prompted tokens, as in the paper, or of the plain tokens."""
    dropout: float = 0.0
    """Dropout at the end of both prompters; at least 0 and below 1."""

    def __post_init__(self) -> None:
        counts = ("n_s", "max_prompts", "depth", "global_tokens")
        for name in (*counts, "spatial_width", "temporal_width"):
            value, least = getattr(self, name), 0 if name == "n_s" else 1
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and least <= value <= _MOST) and (name, value) != ("depth", None):
                raise ValueError(
                    f"{name} must be a whole number of at least {least} and at most {_MOST}, "
                    f"got {value!r}"
                )
        # The comparisons are written so that NaN fails them too.
        for name in ("beta", "eta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name, kind in get_type_hints(StopConfig).items():
            value, choices = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
