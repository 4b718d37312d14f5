"""The baselines of the comparison table, behind the interface of STOP.

Shapes: B videos, T frames, P patches of a frame, D channels of the tower, E of the joint space,
N classes, S static prompts of a block.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.model.sequences import pack
from stop_core.model.video_model import FramePooledModel, VideoModel, check_frames
from stop_core.settings.stop import Attention


class ZeroShot(FramePooledModel):
    """Frozen CLIP, frame embeddings averaged (Radford et al., ICML 2021): nothing is trained."""


class Clip4Clip(VideoModel):
    """Both towers of CLIP fine-tuned in full, frame embeddings averaged: the mean pooling of
    CLIP4Clip (Luo et al., Neurocomputing 2022).

    It trains a copy: the CLIP that it is built from stays as it was, for all who share it. The
    temperature stays CLIP's own, as for every method here.
    """

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__(FrozenClip(clip.name, copy.deepcopy(clip.model), clip.tokenize))
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(name not in ("logit_scale", "logit_bias"))

    @property
    def trains_text(self) -> bool:
        """True: the text tower is trained too."""
        return True

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        check_frames(frames, self.image_size)
        # All of it is open_clip's own forward: the blocks of `tower` are for weights that are
        # frozen, without gradients of their own.
        mean, std = self.tower.mean, self.tower.std
        pixels = frames.flatten(0, 1).to(mean.device).permute(0, 3, 1, 2).float().div(255)
        embeddings: Tensor = self.clip.encode_image((pixels - mean) / std, normalize=True)  # type: ignore[operator]
        by_video_BTE = embeddings.unflatten(0, frames.shape[:2])
        return F.normalize(by_video_BTE.mean(1), dim=-1)


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
                prompts_BSD = self.prompts[index].expand(packed.shape[0], -1, -1)
            # What the next block replaces need not be computed, nor what follows the last.
            carry = prompted <= index + 1 < depth
            packed, prompts_BSD = self.tower.run_block(
                index, packed, prompts_BSD, carry_prompts=carry, only_cls=index + 1 == depth
            )
        return self.embed_video(packed.view(frames.shape[0], -1, self.tower.width))
