"""What every method has in common: a CLIP, and the trainable tensors that adapt it.

Shapes: B videos, T frames of H x W pixels, N texts of L token ids, E channels of the joint
text-video space.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import FrozenTower, in_float32
from stop_core.model.learned_context import LearnedContext
from stop_core.model.sequences import VideoTokens
from stop_core.settings.stop import Attention

_TEXTS_AT_A_TIME = 256  # go through the text tower together


class VideoModel(nn.Module, ABC):
    """A video encoder in CLIP's joint space, and the matching of videos to texts.

    CLIP itself is frozen, but for a method that says otherwise. The trainable tensors, and nothing
    else, are in `prompt_state_dict`.
    """

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__()
        self._clip = clip
        self.clip = clip.model
        self.tower = FrozenTower(clip.name, clip.model.visual)  # type: ignore[arg-type]
        scale: Tensor = clip.model.logit_scale  # type: ignore[assignment]
        self.register_buffer("logit_scale", scale.detach().exp().clone(), persistent=False)
        self.logit_scale: Tensor
        self.context: LearnedContext | None = None

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the frames that the tower takes."""
        return self.tower.image_size

    def train(self, mode: bool = True) -> "VideoModel":
        """Sets training mode; the frozen CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.train(False)
        return self

    @abstractmethod
    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""

    @property
    def trains_text(self) -> bool:
        """Whether training moves the text embeddings, so that they cannot be computed once."""
        return self.context is not None

    def learn_context(self, tokens: int) -> None:
        """Adds `tokens` learned context tokens to every text (CoOp); they are trainable tensors.

        Raises:
            ValueError: if the text tower has no place for them.
        """
        self.context = LearnedContext(self._clip, tokens).to(self.logit_scale.device)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns text embeddings [N, E], L2-normalised, with gradients if `trains_text`."""
        return self.encode_tokens(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Returns the token ids of texts, [N, L]."""
        return self._clip.tokenize(list(texts))

    def read_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the token ids that the text tower reads of them, [N, L]: learned context first.

        A long text loses its last words to the context.
        """
        return tokens_NL if self.context is None else self.context.make_room(self.clip, tokens_NL)

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """`encode_text` for texts that are token ids already, on any device; N is at least 1."""
        return torch.cat([self._encode_some(part) for part in tokens_NL.split(_TEXTS_AT_A_TIME)])

    def _encode_some(self, tokens_NL: Tensor) -> Tensor:
        if self.context is None:
            return self._clip.encode_tokens(tokens_NL)
        embeddings: Tensor = self.context(self.clip, tokens_NL)
        return embeddings

    def forward(self, frames: Tensor, text_embeddings: Tensor) -> Tensor:
        """Returns logits [B, N]: cosine similarity over CLIP's frozen temperature."""
        video_BE = self.encode_video(frames)
        # A cosine in bfloat16 is off by up to 0.004, which CLIP's temperature makes 0.4 of a logit.
        with in_float32(video_BE):
            return self.logit_scale * video_BE.float() @ text_embeddings.float().T

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def prompt_state_dict(self) -> dict[str, Tensor]:
        """Copies of the trainable tensors alone: what a checkpoint holds."""
        return {name: p.detach().clone() for name, p in self.trainable().items()}

    def load_prompt_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Sets the trainable tensors from the twin of this function.

        Raises:
            ValueError: if a tensor is missing, unknown or of another shape.
        """
        own = self.trainable()
        if problem := sorted(own.keys() ^ state.keys()):
            raise ValueError(
                "the checkpoint and the model do not have the same tensors; these are in one of "
                f"them only: {', '.join(problem[:5])}. Build the model with the checkpoint's config"
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                found, wanted = tuple(state[name].shape), tuple(parameter.shape)
                raise ValueError(f"{name} has shape {found} in the checkpoint, not {wanted}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def embed_frames(self, frames: Tensor) -> Tensor:
        """Checks the frames and embeds their patches: tokens [B, T, 1 + P, D], CLS first.

        Raises:
            ValueError: if `frames` is not uint8 [B, T, H, W, 3] of the tower's size.
        """
        check_frames(frames, self.image_size)
        tokens: Tensor = self.tower.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return tokens

    def first_tokens(self, frames: Tensor, attention: Attention) -> VideoTokens:
        """The tokens that enter the first block: one CLS a video (joint) or one a frame."""
        embedded = self.embed_frames(frames)
        # Before the first block, all CLS tokens of a video are alike.
        cls_count = 1 if attention == "joint" else frames.shape[1]
        return VideoTokens(cls=embedded[:, :cls_count, 0], h=embedded[:, :, 1:])

    def embed_video(self, cls_BCD: Tensor) -> Tensor:
        """CLS tokens after the last block -> [B, E]: projected, averaged, L2-normalised."""
        embeddings = F.normalize(self.tower.project(cls_BCD), dim=-1)
        return F.normalize(embeddings.mean(1), dim=-1)


class FramePooledModel(VideoModel):
    """Encodes every frame alone and averages the frame embeddings, as CLIP4Clip does."""

    def encode_frames(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> frame embeddings [B, T, E], L2-normalised."""
        tokens = self.embed_frames(frames).flatten(0, 1)
        for index in range(self.tower.depth):
            tokens, _ = self.tower.run_block(index, tokens, only_cls=index + 1 == self.tower.depth)
        embeddings = F.normalize(self.tower.project(tokens[:, 0]), dim=-1)
        by_video: Tensor = embeddings.unflatten(0, frames.shape[:2])
        return by_video

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        return F.normalize(self.encode_frames(frames).mean(1), dim=-1)


def check_frames(frames: Tensor, size: int) -> None:
    """Raises ValueError if `frames` is not uint8 [B, T, H, W, 3] with H = W = `size`."""
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 pixels, got {frames.dtype}")
    if frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be [B, T, H, W, 3], got shape {tuple(frames.shape)}")
    if frames.shape[2:4] != (size, size):
        height, width = frames.shape[2:4]
        raise ValueError(f"frames are {height}x{width} pixels; this tower takes {size}x{size}")
    if frames.shape[1] < 1:
        raise ValueError("a clip needs at least one frame, got none")
