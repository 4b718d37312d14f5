"""The baselines of the comparison table, behind the interface of STOP.

Shapes: B videos, T frames, P patches of a frame, D channels of the tower, E of the joint space,
N classes, S static prompts of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip import FrozenClip
from stop_core.config import Attention
from stop_core.sequences import pack, unpack
from stop_core.video_model import FramePooledModel, VideoModel


class ZeroShot(FramePooledModel):
    """Frozen CLIP, frame embeddings averaged (Radford et al., ICML 2021): nothing is trained."""


class LinearProbe(FramePooledModel):
    """A linear classifier on the frozen, averaged frame features (Radford et al., ICML 2021).

    The logits come from the classifier alone; the texts are not used.
    """

    def __init__(self, clip: FrozenClip, classes: int) -> None:
        super().__init__(clip)
        embedding = self.tower.project(torch.zeros(self.tower.width))
        self.classifier = nn.Linear(len(embedding), classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, frames: Tensor, text_embeddings: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> logits [B, N] of the classifier."""
        del text_embeddings
        features_BE = self.encode_frames(frames).mean(1)
        # Each channel of an L2-normalised embedding is small; bring it to unit scale.
        logits: Tensor = self.classifier(F.layer_norm(features_BE, features_BE.shape[-1:]))
        return logits


class StaticPrompts(VideoModel):
    """Visual prompt tuning (VPT, Jia et al., ECCV 2022): the same prompts for every video.

    `deep`: `prompts` learned tokens at the input of every block replace those of the block before
    (VPT-deep). Otherwise they enter at the first block and go through the tower as tokens do
    (VPT-shallow).

    Raises:
        ValueError: if `prompts` is below 1.
    """

    def __init__(
        self, clip: FrozenClip, prompts: int, attention: Attention, *, deep: bool = True
    ) -> None:
        super().__init__(clip)
        if prompts < 1:
            raise ValueError(f"static_prompts must be at least 1, got {prompts}")
        self.attention: Attention = attention
        blocks = self.tower.depth if deep else 1
        self.prompts = nn.Parameter(torch.empty(blocks, prompts, self.tower.width))
        nn.init.normal_(self.prompts, std=0.02)

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        tokens = self.first_tokens(frames, self.attention)
        packed = pack(tokens, self.attention)
        prompted, depth = len(self.prompts), self.tower.depth
        prompts_BSD: Tensor | None = None
        for index in range(depth):
            if index < prompted:
                prompts_BSD = self.prompts[index].expand(len(packed), -1, -1)
            # What the next block replaces need not be computed, nor what follows the last.
            carry = prompted <= index + 1 < depth
            packed, prompts_BSD = self.tower.run_block(
                index, packed, prompts_BSD, carry_prompts=carry
            )
        return self.embed_video(unpack(packed, tokens).cls)
