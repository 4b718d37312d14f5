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


@dataclass(frozen=True)
class MapleOptions:
    """Options of maple."""

    text_prompts: int = 2
    """Learned tokens in every text, and in every frame."""
    prompt_depth: int = 9
    """Blocks of both towers with prompts of their own, from the first (at most: all)."""

    def __post_init__(self) -> None:
        _positive(self, "text_prompts", "prompt_depth")


@dataclass(frozen=True)
class VopOptions:
    """Options of vop."""

    text_prompts: int = 8
    """Learned tokens in every text."""
    frame_prompts: int = 8
    """Learned tokens in every frame."""
    frame_prompt: Literal["static", "position", "context"] = "context"
    """static: the same in every frame; position: of their own for each frame number; context:
    from the frames, by an LSTM."""

    def __post_init__(self) -> None:
        _positive(self, "text_prompts", "frame_prompts")


@dataclass(frozen=True)
class DglOptions:
    """Options of dgl."""

    text_prompts: int = 8
    """Learned tokens in every text."""
    frame_prompts: int = 4
    """Learned tokens in every frame, and global tokens."""
    prompt_space: Literal["transformer", "linear"] = "transformer"
    """How the prompts of both towers are coupled. transformer: one over all of them, with prompts
    of their own for each frame number; linear: texts get linear maps of the frames' prompts."""
    prompt_frames: int = 12
    """Number of frames with prompts of their own, at least the frames of a clip."""

    def __post_init__(self) -> None:
        _positive(self, "text_prompts", "frame_prompts", "prompt_frames")


@dataclass(frozen=True)
class PublishedOptions(DglOptions):
    """Options of stop-published: the published code of STOP, each difference a switch."""

    pixel_prompts: Literal["twice", "chosen", "none"] = "twice"
    """twice: prompts on all pixels, and once more on the chosen ones, as published; chosen: on
    these only."""
    chosen_patches: int = 6
    """Number of chosen groups of pixels in a frame."""
    pixel_groups: Literal["comb", "patches"] = "comb"
    """comb: pixels by row and column modulo the grid, as published; patches: the tower's."""
    change_prompts: bool = True
    """Whether frame prompts that follow the video are added in all blocks."""
    change_scale: Literal["batch", "video"] = "batch"
    """Scope of the min-max of the weights W^t. batch: as published; a video's embedding then
    depends on the others in its batch."""
    parallel_adapters: bool = True
    """Whether every block of both towers has an adapter in parallel to its MLP."""
    prompt_dropout: float = 0.5
    """Dropout of the pixel prompts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "chosen_patches")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(
                f"prompt_dropout must be at least 0 and below 1, got {self.prompt_dropout}"
            )
