"""The options of the methods that have their own. Nothing here imports torch.

`MOST_FRAMES` bounds the table of learned frame positions of the methods that have one.
"""

from dataclasses import dataclass
from typing import Any, Literal

MOST_FRAMES = 77


def _positive(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")


@dataclass(frozen=True)
class StAdapterOptions:
    """Options of st-adapter."""

    adapter_ratio: float = 0.5
    """Channels of an adapter as a fraction of the tower's width (384 of 768 in the paper)."""
    adapter_kernel: Literal["3x1x1", "3x3x3"] = "3x1x1"
    """Frames x height x width of the depthwise convolution."""

    def __post_init__(self) -> None:
        _positive(self, "adapter_ratio")


@dataclass(frozen=True)
class AimOptions:
    """Options of aim."""

    adapter_ratio: float = 0.25
    """Channels of an adapter as a fraction of the tower's width."""
    adapter_scale: float = 0.5
    """Factor of the adapter that is parallel to the MLP."""

    def __post_init__(self) -> None:
        _positive(self, "adapter_ratio", "adapter_scale")


@dataclass(frozen=True)
class LoraOptions:
    """Options of lora."""

    lora_rank: int = 4
    """Rank of the update of each query, key and value matrix."""
    lora_scale: float = 1.0
    """Factor of the update: alpha / rank of the paper."""
    lora_towers: Literal["vision", "both"] = "both"
    """The towers that are adapted."""

    def __post_init__(self) -> None:
        _positive(self, "lora_rank", "lora_scale")


@dataclass(frozen=True)
class SequenceOptions:
    """Options of clip4clip-seqtransf."""

    sequence_layers: int = 4
    """Blocks of the transformer over the frame embeddings."""
    tune_towers: bool = True
    """Whether both towers are fine-tuned too, as in the paper. If not, they stay frozen."""

    def __post_init__(self) -> None:
        _positive(self, "sequence_layers")
