"""Methods that train weights of CLIP, or a transformer over its frame embeddings.

Each trains a copy of the CLIP, which other models can share. The temperature stays frozen.

Shapes: B videos, T frames, D channels of a tower, E of the joint space, R rank of an update.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stop_core.clip.loading import FrozenClip
from stop_core.model.video_model import VideoModel, frame_positions
from stop_core.settings.method_options import MOST_FRAMES, LoraOptions, SequenceOptions


class TunedClip(VideoModel):
    """A CLIP whose frames are encoded by open_clip's own forward, with gradients to its weights.

    Nothing is trainable until a method says so. `FrozenTower` computes no gradients of weights.
    """

    any_tower = True

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__(FrozenClip(clip.name, copy.deepcopy(clip.model), clip.tokenize))

    def tune_towers(self) -> None:
        """Makes both towers trainable, apart from the temperature and the bias of the logits."""
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(name not in ("logit_scale", "logit_bias"))

    @property
    def trains_text(self) -> bool:
        """Whether weights of the text tower are trained, or context tokens."""
        vision = {id(parameter) for parameter in self.tower.visual.parameters()}
        text = (p for p in self.clip.parameters() if id(p) not in vision)
        return super().trains_text or any(parameter.requires_grad for parameter in text)

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        by_frame_BTE = F.normalize(self.encode_images(frames), dim=-1)
        return F.normalize(by_frame_BTE.mean(1), dim=-1)


class Clip4Clip(TunedClip):
    """CLIP4Clip (Luo et al., Neurocomputing 2022): towers tuned, normalised frames averaged."""

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__(clip)
        self.tune_towers()


class VifiClip(Clip4Clip):
    """ViFi-CLIP (Rasheed et al., CVPR 2023): frames are averaged before they are normalised."""

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        return F.normalize(self.encode_images(frames).mean(1), dim=-1)


class SequenceTransformer(TunedClip):
    """CLIP4Clip with a transformer over the frame embeddings (seqTransf).

    A learned position is added to every frame embedding, and the output of the transformer to its
    input; the sum is normalised and averaged. As in the authors' code, the transformer and the
    positions start as those of CLIP's text tower, if it has the width of the joint space.
    """

    def __init__(self, clip: FrozenClip, options: SequenceOptions) -> None:
        super().__init__(clip)
        if options.tune_towers:
            self.tune_towers()
        embedding = self.tower.embedding_width
        text: Any = getattr(self.clip, "text", self.clip)
        of_text = list(getattr(getattr(text, "transformer", None), "resblocks", []))
        if not of_text or of_text[0].ln_1.normalized_shape != (embedding,):
            of_text = []
        heads = of_text[0].attn.num_heads if of_text else max(1, embedding // 64)
        # Blocks beyond those of the text tower start at random.
        blocks = [copy.deepcopy(block) for block in of_text[: options.sequence_layers]]
        while len(blocks) < options.sequence_layers:
            blocks.append(ResidualAttentionBlock(embedding, heads))
        self.sequence = nn.ModuleList(blocks).requires_grad_(True)
        self.positions = nn.Parameter(torch.empty(MOST_FRAMES, embedding))
        nn.init.normal_(self.positions, std=0.01)
        if of_text:
            known = text.positional_embedding[:MOST_FRAMES].detach()
            with torch.no_grad():
                self.positions[: len(known)] = known

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        by_frame_BTE = self.encode_images(frames)
        tokens_BTE = by_frame_BTE + frame_positions(self.positions, frames.shape[1])
        for block in self.sequence:
            tokens_BTE = block(tokens_BTE)
        by_frame_BTE = F.normalize(by_frame_BTE + tokens_BTE, dim=-1)
        return F.normalize(by_frame_BTE.mean(1), dim=-1)


class LoraClip(TunedClip):
    """LoRA (Hu et al., ICLR 2022): an update of low rank of every query, key and value matrix.

    As in CLIP-LoRA (Zanella and Ben Ayed, CVPRW 2024), of both towers; frame embeddings averaged.
    """

    any_tower = False  # it needs the matrices of open_clip's own ViT

    def __init__(self, clip: FrozenClip, options: LoraOptions) -> None:
        super().__init__(clip)
        searched = self.clip if options.lora_towers == "both" else self.tower.visual
        layers = [m for m in searched.modules() if isinstance(m, nn.MultiheadAttention)]
        for layer in layers:
            update = LowRankUpdate(layer.embed_dim, options.lora_rank, options.lora_scale)
            parametrize.register_parametrization(layer, "in_proj_weight", update)

    def encode_images(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> frame embeddings [B, T, E], not normalised."""
        with parametrize.cached():  # each matrix is summed once
            return super().encode_images(frames)

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the embeddings [N, E] of token ids on any device; N is at least 1."""
        with parametrize.cached():
            return super().encode_tokens(tokens_NL)


class LowRankUpdate(nn.Module):
    """W + scale * B A for the query, key and value matrices, which are stacked in W [3 D, D].

    `up` (B) starts at zero, so that training starts at the frozen weights.
    """

    def __init__(self, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.empty(3, rank, width))
        self.up = nn.Parameter(torch.zeros(3, width, rank))
        nn.init.normal_(self.down, std=width**-0.5)

    def forward(self, weight_ED: Tensor) -> Tensor:
        """Returns the updated matrices, [3 D, D]."""
        update: Tensor = (self.up @ self.down).flatten(0, 1)
        return weight_ED + self.scale * update.to(weight_ED.dtype)
