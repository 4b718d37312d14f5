"""The options of the methods that have their own. Nothing here imports torch.

`MOST_FRAMES` bounds the table of learned frame positions of the methods that have one.
"""

from dataclasses import asdict, dataclass
from typing import Literal

MOST_FRAMES = 77


@dataclass(frozen=True)
class _Positive:
    """Options whose numbers are positive and finite; `prompt_dropout` is at least 0, below 1."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and name != "prompt_dropout" and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
            if name == "prompt_dropout" and not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


@dataclass(frozen=True)
class StAdapterOptions(_Positive):
    """Options of st-adapter."""

    adapter_ratio: float = 0.5
    """Channels of an adapter as a fraction of the tower's width (384 of 768 in the paper)."""
    adapter_kernel: Literal["3x1x1", "3x3x3"] = "3x1x1"
    """Frames x height x width of the depthwise convolution."""


@dataclass(frozen=True)
class AimOptions(_Positive):
    """Options of aim."""

    adapter_ratio: float = 0.25
    """Channels of an adapter as a fraction of the tower's width."""
    adapter_scale: float = 0.5
    """Factor of the adapter that is parallel to the MLP."""


@dataclass(frozen=True)
class LoraOptions(_Positive):
    """Options of lora."""

    lora_rank: int = 4
    """Rank of the update of each query, key and value matrix."""
    lora_scale: float = 1.0
    """Factor of the update: alpha / rank of the paper."""
    lora_towers: Literal["vision", "both"] = "both"
    """The towers that are adapted."""


@dataclass(frozen=True)
class SequenceOptions(_Positive):
    """Options of clip4clip-seqtransf."""

    sequence_layers: int = 4
    """Blocks of the transformer over the frame embeddings."""
    tune_towers: bool = True
    """Whether both towers are fine-tuned too, as in the paper. If not, they stay frozen."""


@dataclass(frozen=True)
class MapleOptions(_Positive):
    """Options of maple."""

    text_prompts: int = 2
    """Learned tokens in every text, and in every frame."""
    prompt_depth: int = 9
    """Blocks of both towers with separate prompts, from the first (at most: all)."""


@dataclass(frozen=True)
class VopOptions(_Positive):
    """Options of vop."""

    text_prompts: int = 8
    """Learned tokens in every text."""
    frame_prompts: int = 8
    """Learned tokens in every frame."""
    frame_prompt: Literal["static", "position", "context"] = "context"
    """static: the same in every frame; position: separate ones for each frame number; context:
    from the frames, by an LSTM."""


@dataclass(frozen=True)
class DglOptions(_Positive):
    """Options of dgl."""

    text_prompts: int = 8
    """Learned tokens in every text."""
    frame_prompts: int = 4
    """Learned tokens in every frame, and global tokens."""
    prompt_space: Literal["transformer", "linear"] = "transformer"
    """How the prompts of both towers are coupled. transformer: one over all of them, with
    separate prompts for each frame number; linear: texts get linear maps of the frames' prompts."""
    prompt_frames: int = 12
    """Number of frames with separate prompts, at least the frames of a clip."""


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
