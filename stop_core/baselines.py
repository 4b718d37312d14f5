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
    """Deep visual prompt tuning (VPT, Jia et al., ECCV 2022): the same prompts for every video.

    `prompts` learned tokens at the input of every block replace those of the block before.
    """

    def __init__(self, clip: FrozenClip, prompts: int, attention: Attention) -> None:
        super().__init__(clip)
        if prompts < 1:
            raise ValueError(f"static_prompts must be at least 1, got {prompts}")
        self.attention: Attention = attention
        self.prompts = nn.Parameter(torch.empty(self.tower.depth, prompts, self.tower.width))
        nn.init.normal_(self.prompts, std=0.02)

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        tokens = self.first_tokens(frames, self.attention)
        packed = pack(tokens, self.attention)
        for index, prompts_SD in enumerate(self.prompts):
            prompts_BSD = prompts_SD.expand(len(packed), -1, -1)
            packed, _ = self.tower.run_block(index, packed, prompts_BSD)
        return self.embed_video(unpack(packed, tokens).cls)
