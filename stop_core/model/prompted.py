"""Running a frozen tower whose blocks are given prompts at their inputs.

Shapes: B videos, T frames, S packed sequences of N tokens, X prompts beside a sequence, D channels
of the tower, E of the joint space.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import in_float32
from stop_core.model.sequences import VideoTokens, pack, unpack
from stop_core.model.video_model import VideoModel
from stop_core.settings.stop import StopConfig


class BlockInput(NamedTuple):
    """What enters a block: the packed tokens, and the prompts beside them."""

    sequence: Tensor  # [S, N, D], as `pack` makes it
    prompts: Tensor | None = None  # [S, X, D]
    presence: Tensor | None = None  # [S, X] 1 for a prompt that is there, 0 for an empty slot


Prompting = Callable[[int, VideoTokens], BlockInput]


class PromptedModel(VideoModel, ABC):
    """Prompts the inputs of the first `depth` blocks of a frozen tower.

    `checkpoint_activations` trades time for memory: a training step then keeps the inputs of the
    blocks alone, and computes the rest again in the backward pass. It changes no result.

    Raises:
        ValueError: if `config` does not fit the tower; the message names the field.
    """

    def __init__(self, clip: FrozenClip, config: StopConfig) -> None:
        super().__init__(clip)
        tower = self.tower
        self.config = config
        self.checkpoint_activations = False
        self.prompted_blocks = tower.depth if config.depth is None else config.depth
        _check_fits("n_s", config.n_s, tower.patches, f"the patches of a frame of {clip.name}")
        _check_fits("depth", self.prompted_blocks, tower.depth, f"the blocks of {clip.name}")

    @abstractmethod
    def prompt(self, index: int, tokens: VideoTokens) -> BlockInput:
        """Prompts the tokens that enter block `index`, one of the first `depth`."""

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        return self.encode_with(self.prompt, frames)

    def encode_with(self, prompting: Prompting, frames: Tensor) -> Tensor:
        """Video embeddings, [B, E], with `prompting` in the place of `prompt`."""
        tower, attention = self.tower, self.config.attention
        tokens = self.first_tokens(frames, attention)
        prompts: Tensor | None = None
        presence: Tensor | None = None
        for index in range(tower.depth):
            if self.checkpoint_activations and torch.is_grad_enabled():
                out, prompts, presence = checkpoint(
                    self._block, prompting, index, tokens, prompts, presence, use_reentrant=False
                )
            else:
                out, prompts, presence = self._block(prompting, index, tokens, prompts, presence)
            if index + 1 < tower.depth:
                tokens = unpack(out, tokens)
        return self.embed_video(out.view(frames.shape[0], -1, tower.width))

    def _block(
        self,
        prompting: Prompting,
        index: int,
        tokens: VideoTokens,
        prompts: Tensor | None,
        presence: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One block and the prompting at its input: tokens, prompts and their presence."""
        if index < self.prompted_blocks:
            # In float32: in bfloat16, up to 2% of the choices would fall otherwise.
            with in_float32(tokens.h):
                given = prompting(index, tokens)
        else:
            given = BlockInput(pack(tokens, self.config.attention), prompts, presence)
        last = index + 1 == self.tower.depth
        out, carried = self.tower.run_block(
            index,
            *given,
            # What the next block replaces need not be computed, nor what follows the last,
            carry_prompts=self.prompted_blocks <= index + 1 and not last,
            # of which the CLS tokens alone are looked at.
            only_cls=last,
        )
        return out, carried, given.presence


def _check_fits(name: str, value: int, most: int, what: str) -> None:
    if value > most:
        raise ValueError(f"{name} must be at most {most}, {what}; got {value}")
