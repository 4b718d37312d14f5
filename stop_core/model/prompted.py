"""A frozen tower with prompts at the inputs of its blocks.

Shapes: B videos, T frames, S packed sequences of N tokens, X prompts per sequence, D channels of
the tower, E of the joint space.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import in_float32
from stop_core.model.running_scale import RunningScale, SumOverProcesses
from stop_core.model.sequences import VideoTokens
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig


class BlockInput(NamedTuple):
    """The input of a block: packed tokens and their prompts."""

    sequence: Tensor  # [S, N, D], packed
    prompts: Tensor | None = None  # [S, X, D]
    presence: Tensor | None = None  # [S, X] 1 for a prompt, 0 for an empty slot


Prompting = Callable[[int, VideoTokens], BlockInput]


class PromptedModel(VideoModel, ABC):
    """A frozen tower with trainable prompting layers at the inputs of its first `depth` blocks.

    There is one layer per prompted block, or one for all of them if `share`. With
    `checkpoint_activations`, a training step stores only the inputs of the blocks and recomputes
    the rest in the backward pass: less memory, more time, the same result.
    """

    def __init__(self, clip: FrozenClip, config: StopConfig) -> None:
        super().__init__(clip)
        tower = self.tower
        self.config = config
        self.checkpoint_activations = False
        self.prompted_blocks = tower.depth if config.depth is None else config.depth
        for name, value, largest, limit in (
            ("n_s", config.n_s, tower.patches, "the patches of a frame"),
            ("depth", self.prompted_blocks, tower.depth, "the blocks"),
        ):
            if value > largest:
                raise ValueError(
                    f"{name} must be at most {largest}, {limit} of {clip.name}; got {value}"
                )
        self.global_tokens: nn.Parameter | None = None
        if config.attention == "global":
            self.global_tokens = self.new_global_tokens(config.global_tokens)
        layers = 1 if config.share else self.prompted_blocks
        self.prompting = nn.ModuleList(self.make_layer() for _ in range(layers))

    @classmethod
    def build(cls, clip: FrozenClip, config: ExperimentConfig, classes: int) -> "PromptedModel":
        """Returns the method with the settings of an experiment."""
        del classes
        return cls(clip, config.stop)

    @abstractmethod
    def make_layer(self) -> nn.Module:
        """Returns a new prompting layer."""

    def learned(self) -> dict[str, Tensor]:
        """Returns the trainable tensors, and the buffers of the prompting layers."""
        buffers = self.prompting.named_buffers()
        return super().learned() | {f"prompting.{name}": value for name, value in buffers}

    def end_step(self, sum_over_processes: SumOverProcesses) -> None:
        """Moves the running scales after an optimizer step, on every process."""
        if self.config.normalize == "running":
            for module in self.prompting.modules():
                if isinstance(module, RunningScale):
                    module.end_step(sum_over_processes)

    def layer(self, index: int) -> nn.Module:
        """Returns the prompting layer of block `index`."""
        return self.prompting[0 if self.config.share else index]

    def prompt(self, index: int, tokens: VideoTokens) -> BlockInput:
        """Prompts the tokens that enter block `index`, one of the first `depth`."""
        return cast(BlockInput, self.layer(index)(tokens))

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        return self.encode_with(self.prompt, frames)

    def encode_with(self, prompting: Prompting, frames: Tensor) -> Tensor:
        """Returns video embeddings, [B, E], with `prompting` in place of `prompt`."""
        tower = self.tower
        tokens = self.first_tokens(frames, self.config.attention)
        prompts: Tensor | None = None
        presence: Tensor | None = None
        global_BGD: Tensor | None = None
        if self.global_tokens is not None:
            global_BGD = self.global_tokens.expand(frames.shape[0], -1, -1)
        for index in range(tower.depth):
            given = prompting, index, tokens, prompts, presence, global_BGD
            if self.checkpoint_activations and torch.is_grad_enabled():
                results = checkpoint(self._block, *given, use_reentrant=False)
            else:
                results = self._block(*given)
            out, prompts, presence, global_BGD = results
            if index + 1 < tower.depth:
                tokens = tokens.with_packed(out)
        if global_BGD is not None:
            return self.embed_video(global_BGD[:, :1])
        return self.embed_video(out.view(frames.shape[0], -1, tower.width))

    def _block(
        self,
        prompting: Prompting,
        index: int,
        tokens: VideoTokens,
        prompts: Tensor | None,
        presence: Tensor | None,
        global_BGD: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Runs one block with the prompting at its input; returns its tokens and the next state."""
        if index < self.prompted_blocks:
            # In float32: bfloat16 would change up to 2% of the selected patches.
            with in_float32(tokens.packed):
                given = prompting(index, tokens)
        else:
            given = BlockInput(tokens.packed, prompts, presence)
        last = index + 1 == self.tower.depth
        # Otherwise the next block replaces the prompts, or there is no next block.
        carry = self.prompted_blocks <= index + 1 and not last
        # The embedding is computed from the CLS tokens only, or from the global ones.
        if global_BGD is None:
            out, carried = self.tower.run_block(index, *given, carry_prompts=carry, only_cls=last)
        else:
            global_BGD, out, carried = self.tower.run_global_block(
                index, global_BGD, *given, carry_prompts=carry, only_global=last
            )
        return out, carried, given.presence, global_BGD
