"""The base class of all methods: a CLIP and the trainable tensors that adapt it.

Shapes: B videos, T frames of H x W pixels, N texts of L token ids, E channels of the joint
text-video space.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import FrozenTower, ImageTower, in_float32, unfit
from stop_core.model.learned_context import LearnedContext, PromptedTexts
from stop_core.model.running_scale import SumOverProcesses
from stop_core.model.sequences import VideoTokens
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import NoOptions
from stop_core.settings.stop import Attention

_TEXTS_AT_A_TIME = 256  # batch size of the text tower


class VideoModel(nn.Module, ABC):
    """A video encoder in CLIP's joint space, and the matching of videos to texts.

    CLIP is frozen unless the method says otherwise. `prompt_state_dict` has the `learned` tensors.
    """

    any_tower = False
    """Whether the method needs no blocks of the tower, which can then be of any kind; `tower` is an
    `ImageTower` if they cannot be run."""
    not_compiled = ""
    """The reason why torch.compile does not fit the method; empty if it does."""

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__()
        self._clip = clip
        self.clip = clip.model
        visual = cast(nn.Module, clip.model.visual)
        kind = ImageTower if self.any_tower and unfit(visual) else FrozenTower
        self.tower = cast(FrozenTower, kind(clip.name, visual))
        scale: Tensor = clip.model.logit_scale  # type: ignore[assignment]
        self.register_buffer("logit_scale", scale.detach().exp().clone(), persistent=False)
        self.logit_scale: Tensor
        self.context: PromptedTexts | None = None

    @classmethod
    def build(cls, clip: FrozenClip, config: ExperimentConfig, classes: int) -> "VideoModel":
        """Returns the method with the settings of an experiment, for `classes` classes.

        A method with options of its own (`Method.options`) is given them as second argument.
        Methods that need other settings override this.
        """
        del classes
        own = config.method_options
        arguments = () if isinstance(own, NoOptions) else (own,)
        return cls(clip, *arguments)

    @property
    def image_size(self) -> int:
        """Height and width of the frames that the tower takes, in pixels."""
        return self.tower.image_size

    def train(self, mode: bool = True) -> "VideoModel":
        """Sets training mode; the frozen CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.train(False)
        return self

    def new_global_tokens(self, count: int) -> nn.Parameter:
        """Returns `count` tokens [G, D] for `FrozenTower.run_global_block`.

        They start as the CLS token, nearly, so that the tower can use them at once.
        """
        noise = 0.02 * torch.randn(count, self.tower.width)
        return nn.Parameter(self.tower.cls_token().cpu() + noise)

    @abstractmethod
    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""

    @property
    def trains_text(self) -> bool:
        """Whether training changes the text embeddings, so that they cannot be computed once."""
        return self.context is not None

    def learn_context(self, tokens: int) -> None:
        """Adds `tokens` learned context tokens to every text (CoOp); ValueError if it cannot."""
        if self.context is not None:
            raise ValueError("this method has learned tokens in its texts: set context_tokens to 0")
        self.context = LearnedContext(self._clip, tokens).to(self.logit_scale.device)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns text embeddings [N, E], L2-normalised, with gradients if `trains_text`."""
        return self.encode_tokens(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Returns the token ids of texts, [N, L]."""
        return self._clip.tokenize(list(texts))

    def read_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the token ids that the text tower reads, [N, L]: with places for the context.

        The context replaces the last words of a text that is too long.
        """
        return tokens_NL if self.context is None else self.context.make_room(self.clip, tokens_NL)

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the embeddings [N, E] of token ids on any device; N is at least 1."""
        encode = self._clip.encode_tokens
        if self.context is not None:
            encode = partial(self.context, self.clip)
        return torch.cat([encode(part) for part in tokens_NL.split(_TEXTS_AT_A_TIME)])

    def forward(self, frames: Tensor, text_embeddings: Tensor) -> Tensor:
        """Returns logits [B, N]: c(s, v) / tau, the cosine over CLIP's frozen temperature."""
        video_BE = self.encode_video(frames)
        # A cosine in bfloat16 has an error of up to 0.004, and CLIP's temperature makes it 0.4.
        with in_float32(video_BE):
            return self.logit_scale * video_BE.float() @ text_embeddings.float().T

    def trainable(self) -> dict[str, nn.Parameter]:
        """Returns the trainable tensors by name, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def learned(self) -> dict[str, Tensor]:
        """Returns the tensors of a trained model by name: those that training or its seed set."""
        return {**self.trainable()}

    def end_step(self, sum_over_processes: SumOverProcesses) -> None:
        """Updates running statistics after an optimizer step, on every process; there are none."""

    def prompt_state_dict(self) -> dict[str, Tensor]:
        """Returns copies of the learned tensors: the weights in a checkpoint."""
        return {name: tensor.detach().clone() for name, tensor in self.learned().items()}

    def load_prompt_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Sets the learned tensors; ValueError if one is missing, unknown or of another shape."""
        own = self.learned()
        if problem := sorted(own.keys() ^ state.keys()):
            raise ValueError(
                "the checkpoint and the model have different tensors; only one of them has "
                f"{', '.join(problem[:5])}. Build the model with the checkpoint's config"
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                found, wanted = tuple(state[name].shape), tuple(parameter.shape)
                raise ValueError(f"{name} has shape {found} in the checkpoint, not {wanted}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def encode_images(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> frame embeddings [B, T, E], not normalised.

        By open_clip's forward, with gradients to the weights of the tower that are trainable.
        """
        check_frames(frames, self.image_size)
        pixels = self.tower.normalise(frames.flatten(0, 1))
        embeddings: Tensor = self.clip.encode_image(pixels)  # type: ignore[operator]
        return cast(Tensor, embeddings.unflatten(0, frames.shape[:2]))

    def embed_frames(self, frames: Tensor) -> Tensor:
        """Returns the tokens that enter the first block, [B, T, 1 + P, D], CLS first.

        Raises ValueError if `frames` is not uint8 [B, T, H, W, 3] of the tower's size.
        """
        check_frames(frames, self.image_size)
        return cast(Tensor, self.tower.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))

    def first_tokens(self, frames: Tensor, attention: Attention) -> VideoTokens:
        """`embed_frames` with one CLS token per video (joint attention) or per frame."""
        embedded = self.embed_frames(frames)
        if attention != "joint":
            return VideoTokens(embedded.flatten(0, 1), frames.shape[1], joint=False)
        # Before the first block, all CLS tokens of a video are equal.
        return VideoTokens.pack(embedded[:, :1, 0], embedded[:, :, 1:], attention)

    def embed_video(self, cls_BCD: Tensor) -> Tensor:
        """CLS tokens [B, C, D] after the last block -> [B, E]: projected, averaged, normalised."""
        embeddings = F.normalize(self.tower.project(cls_BCD), dim=-1)
        return F.normalize(embeddings.mean(1), dim=-1)


class FramePooledModel(VideoModel):
    """Encodes every frame separately and averages the frame embeddings, as CLIP4Clip does."""

    any_tower = True

    def encode_frames(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> frame embeddings [B, T, E], L2-normalised."""
        if not isinstance(self.tower, FrozenTower):
            return F.normalize(self.encode_images(frames), dim=-1)
        tokens = self.embed_frames(frames).flatten(0, 1)
        for index in range(self.tower.depth):
            tokens, _ = self.tower.run_block(index, tokens, only_cls=index + 1 == self.tower.depth)
        embeddings = F.normalize(self.tower.project(tokens[:, 0]), dim=-1)
        return cast(Tensor, embeddings.unflatten(0, frames.shape[:2]))

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        return F.normalize(self.encode_frames(frames).mean(1), dim=-1)


def check_frames(frames: Tensor, size: int) -> None:
    """Raises ValueError if `frames` is not uint8 [B, T, H, W, 3] with H = W = `size`."""
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames must be pixels from 0 to 255 as uint8, got {frames.dtype}")
    if frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be [B, T, H, W, 3], got shape {tuple(frames.shape)}")
    if frames.shape[2:4] != (size, size):
        height, width = frames.shape[2:4]
        raise ValueError(f"frames are {height}x{width} pixels; this tower takes {size}x{size}")
    if frames.shape[1] < 1:
        raise ValueError("a clip needs at least one frame, got none")


def frame_positions(positions: Tensor, frames: int) -> Tensor:
    """Returns the first `frames` learned positions; ValueError if there are fewer."""
    if frames > len(positions):
        raise ValueError(
            f"this method has positions for {len(positions)} frames, and the clips have {frames}; "
            "use fewer --frames"
        )
    return positions[:frames]
