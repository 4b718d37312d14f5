"""The baselines of the comparison table, with the interface of STOP.

Shapes: B videos, T frames, P patches per frame, D channels of the tower, E of the joint space,
N classes, S static prompts per block.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.model.video_model import FramePooledModel, VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import Attention


class ZeroShot(FramePooledModel):
    """Frozen CLIP, frame embeddings averaged (Radford et al., ICML 2021): nothing is trained."""


class LinearProbe(FramePooledModel):
    """A linear classifier on frozen, averaged frame features (Radford et al., ICML 2021)."""

    not_compiled = "only one linear map is trained"

    def __init__(self, clip: FrozenClip, classes: int) -> None:
        super().__init__(clip)
        self.classifier = nn.Linear(self.tower.embedding_width, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def build(cls, clip: FrozenClip, config: ExperimentConfig, classes: int) -> "LinearProbe":
        """Returns the method for `classes` classes."""
        del config
        return cls(clip, classes)

    def forward(self, frames: Tensor, text_embeddings: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> logits [B, N] of the classifier."""
        del text_embeddings
        features_BE = self.encode_frames(frames).mean(1)
        # The channels of an L2-normalised embedding are small; rescale them to unit variance.
        return cast(Tensor, self.classifier(F.layer_norm(features_BE, features_BE.shape[-1:])))


class StaticPrompts(VideoModel):
    """VPT-deep (Jia et al., ECCV 2022): the tokens of each block replace those before it."""

    deep = True

    def __init__(self, clip: FrozenClip, prompts: int, attention: Attention) -> None:
        super().__init__(clip)
        if prompts < 1:
            raise ValueError(f"static_prompts must be at least 1, got {prompts}")
        if attention == "global":
            raise ValueError("attention global is for STOP and its ablations; give frame or joint")
        self.attention: Attention = attention
        blocks = self.tower.depth if self.deep else 1
        self.prompts = nn.Parameter(torch.empty(blocks, prompts, self.tower.width))
        nn.init.normal_(self.prompts, std=0.02)

    @classmethod
    def build(cls, clip: FrozenClip, config: ExperimentConfig, classes: int) -> "StaticPrompts":
        """Returns the method with the settings of an experiment."""
        del classes
        return cls(clip, config.static_prompts, config.stop.attention)

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        packed = self.first_tokens(frames, self.attention).packed
        prompted, depth = len(self.prompts), self.tower.depth
        prompts_BSD: Tensor | None = None
        for index in range(depth):
            if index < prompted:
                prompts_BSD = self.prompts[index].expand(packed.shape[0], -1, -1)
            # Prompts are carried unless the next block replaces them or there is none.
            carry = prompted <= index + 1 < depth
            packed, prompts_BSD = self.tower.run_block(
                index, packed, prompts_BSD, carry_prompts=carry, only_cls=index + 1 == depth
            )
        return self.embed_video(packed.view(frames.shape[0], -1, self.tower.width))


class ShallowPrompts(StaticPrompts):
    """VPT-shallow: the tokens are inserted at the first block and carried through the tower."""

    deep = False
