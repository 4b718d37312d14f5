"""The settings of STOP, with the names of the paper."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Attention = Literal["joint", "frame"]
Normalize = Literal["per_frame", "none"]
SelectionMode = Literal["ste", "hard"]
Difference = Literal["prompted", "plain"]
_MOST = 4096  # a larger value would need more memory than any machine has


@dataclass(frozen=True)
class StopConfig:
    """Settings of the prompting layers (STOP, CVPR 2025, sections 3.2 and 3.3).

    Raises:
        ValueError: if a field is out of its range; the message names the field.
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
    """frame: each frame separately, embeddings averaged; joint: one CLS attends to all frames."""
    normalize: Normalize = "per_frame"
    """per_frame: A, M and W^t are rescaled to [0, 1] within a video; none: as in the paper."""
    selection: SelectionMode = "ste"
    """ste: straight-through gradients through the two selections; hard: none, as in the paper."""
    difference: Difference = "prompted"
    """Frame difference d of the prompted tokens, as in the paper, or of the plain tokens."""
    dropout: float = 0.0
    """Dropout at the end of both prompters; at least 0 and below 1."""

    def __post_init__(self) -> None:
        _check_count("n_s", self.n_s, 0)
        _check_at_least("beta", self.beta, 0)
        _check_at_least("eta", self.eta, 0)
        for name in ("max_prompts", "spatial_width", "temporal_width"):
            _check_count(name, getattr(self, name), 1)
        if self.depth is not None:
            _check_count("depth", self.depth, 1)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        _check_choice("attention", self.attention, ("joint", "frame"))
        _check_choice("normalize", self.normalize, ("per_frame", "none"))
        _check_choice("selection", self.selection, ("ste", "hard"))
        _check_choice("difference", self.difference, ("prompted", "plain"))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, ready for YAML or a tracking server."""
        return asdict(self)


def _check_at_least(name: str, value: float, least: float) -> None:
    # The comparison is written so that NaN fails it too.
    if not least <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least {least}, got {value}")


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        raise ValueError(
            f"{name} must be a whole number of at least {least} and at most {_MOST}, got {value!r}"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
