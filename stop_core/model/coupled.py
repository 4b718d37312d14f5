"""Methods with deep prompts in both towers, the vision and the text tower.

The towers stay frozen. In a text the prompts are behind its start token, in a frame behind its
patches; every prompted block has its own.

Shapes: B videos, T frames, S = B * T, N = 1 + P tokens of a frame, X prompts of a frame, M of a
text, J prompted blocks, D channels of the vision tower, G global tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.model.learned_context import DeepContext, text_depth, text_width
from stop_core.model.video_model import VideoModel, frame_positions
from stop_core.settings.method_options import MOST_FRAMES, DglOptions, MapleOptions, VopOptions

_STD = 0.02


class FramePromptedModel(VideoModel, ABC):
    """Frames with X prompts each, which a method computes for every block; embeddings averaged."""

    @abstractmethod
    def frame_prompts(self, index: int, tokens_BTND: Tensor) -> Tensor | None:
        """Returns the prompts of block `index`, [B, T, X, D]; None: those of the block before."""

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        tokens_BTND = self.embed_frames(frames)
        given = self.frame_prompts(0, tokens_BTND)
        carried_SXD: Tensor | None = None
        for index in range(self.tower.depth):
            prompts_SXD = carried_SXD if given is None else given.flatten(0, 1)
            last = index + 1 == self.tower.depth
            packed, carried_SXD = self.tower.run_block(
                index,
                tokens_BTND.flatten(0, 1),
                prompts_SXD,
                carry_prompts=not last,
                only_cls=last,
            )
            tokens_BTND = packed.unflatten(0, frames.shape[:2])
            if not last:
                given = self.frame_prompts(index + 1, tokens_BTND)
        return self.embed_video(tokens_BTND[:, :, 0])


class Maple(FramePromptedModel):
    """MaPLe (Khattak et al., CVPR 2023) on frames: visual prompts are linear maps of textual ones.

    The first `prompt_depth` blocks of both towers have prompts of their own, coupled one by one;
    later blocks carry them. MaPLe is a method for images; frame embeddings are averaged.
    """

    def __init__(self, clip: FrozenClip, options: MapleOptions) -> None:
        super().__init__(clip)
        depth = min(options.prompt_depth, self.tower.depth, text_depth(clip))
        width = text_width(clip)
        self.text_prompts = nn.Parameter(_STD * torch.randn(depth, options.text_prompts, width))
        self.couple = nn.ModuleList(nn.Linear(width, self.tower.width) for _ in range(depth))
        self.context = DeepContext(clip, options.text_prompts, lambda: self.text_prompts)

    def frame_prompts(self, index: int, tokens_BTND: Tensor) -> Tensor | None:
        """Returns the prompts of block `index`, [B, T, X, D]; None: those of the block before."""
        if index >= len(self.couple):
            return None
        prompts_XD: Tensor = self.couple[index](self.text_prompts[index])
        return prompts_XD.expand(*tokens_BTND.shape[:2], -1, -1)


class Vop(FramePromptedModel):
    """VoP (Huang et al., CVPR 2023): deep prompts in both towers, and prompts for each frame.

    Written from the paper, whose code is not published. With frame prompts by position, those of a
    block are a common part and one of the frame's number. By context, they are the common part and
    a linear map of a bidirectional LSTM, the same for all blocks, over the frames' CLS tokens.
    """

    def __init__(self, clip: FrozenClip, options: VopOptions) -> None:
        super().__init__(clip)
        depth, width = self.tower.depth, self.tower.width
        texts = (text_depth(clip), options.text_prompts, text_width(clip))
        self.text_prompts = nn.Parameter(_STD * torch.randn(texts))
        self.common = nn.Parameter(_STD * torch.randn(depth, options.frame_prompts, width))
        self.kind = options.frame_prompt
        if self.kind == "position":
            self.by_frame = nn.Parameter(torch.zeros(MOST_FRAMES, depth, width))
        elif self.kind == "context":
            self.over_frames = nn.LSTM(width, width // 2, bidirectional=True)
            self.from_context = nn.Linear(2 * (width // 2), width)
            nn.init.normal_(self.from_context.weight, std=_STD)
            nn.init.zeros_(self.from_context.bias)
        self.context = DeepContext(clip, options.text_prompts, lambda: self.text_prompts)

    def frame_prompts(self, index: int, tokens_BTND: Tensor) -> Tensor:
        """Returns the prompts of block `index`, [B, T, X, D]."""
        batch, frames = tokens_BTND.shape[:2]
        common_BTXD = self.common[index].expand(batch, frames, -1, -1)
        if self.kind == "position":
            return common_BTXD + frame_positions(self.by_frame, frames)[:, index, None]
        if self.kind == "context":
            # With frames first and contiguous, an exported program takes batches of any size.
            context_TBD, _ = self.over_frames(tokens_BTND[:, :, 0].transpose(0, 1).contiguous())
            own_TBD: Tensor = self.from_context(context_TBD)
            return common_BTXD + own_TBD.transpose(0, 1)[:, :, None]
        return common_BTXD


class Dgl(VideoModel):
    """DGL (Yang et al., AAAI 2024): global tokens, prompts of frames and of texts, coupled.

    Global tokens attend to all tokens of all frames, and every frame to them; the first one is the
    video. They enter at the first block and are carried; every block has separate frame prompts.
    All prompts of a text are behind its start token (the authors' code puts half of them at its
    end), and the global tokens start as the CLS token (the authors' at random).
    """

    def __init__(self, clip: FrozenClip, options: DglOptions) -> None:
        super().__init__(clip)
        self.options = options
        tower, count, width = self.tower, options.frame_prompts, text_width(clip)
        self.global_tokens = self.new_global_tokens(count)
        depth = max(tower.depth, text_depth(clip))
        number = count
        if options.prompt_space == "transformer":
            number = options.text_prompts + count * options.prompt_frames
            heads = max(1, tower.width // 64)
            self.mix = ResidualAttentionBlock(tower.width, heads, act_layer=QuickGELU)
            hidden = 2 * tower.width
            layers = nn.Linear(tower.width, hidden), QuickGELU(), nn.Linear(hidden, width)
            self.to_text: nn.Module = nn.Sequential(*layers)
        else:
            copies = -(-options.text_prompts // count)
            self.to_text = nn.Linear(tower.width, copies * width)
        self.prompts = nn.Parameter(_STD * torch.randn(depth, number, tower.width))
        self.context = DeepContext(clip, options.text_prompts, self._of_texts)

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        tokens_BTND = self.embed_frames(frames)
        return self.encode_embedded(tokens_BTND, self.frame_prompts(frames.shape[1]))

    def frame_prompts(self, frames: int) -> Tensor:
        """Returns the frame prompts of all blocks, [J, T, X, D]."""
        options = self.options
        if options.prompt_space == "linear":
            return self.prompts[:, None].expand(-1, frames, -1, -1)
        if frames > options.prompt_frames:
            raise ValueError(
                f"{options.prompt_frames} frames have prompts, and the clips have {frames}; give "
                f"prompt_frames={frames}, or fewer --frames"
            )
        mixed_JTXD: Tensor = self.mix(self.prompts)[:, options.text_prompts :].unflatten(
            1, (options.prompt_frames, options.frame_prompts)
        )
        return mixed_JTXD[:, :frames]

    def encode_embedded(
        self,
        tokens_BTND: Tensor,
        prompts_JTXD: Tensor,
        parallel: Sequence[nn.Module | None] = (),
    ) -> Tensor:
        """Embedded frames and their prompts, [J, T, X, D] or [J, B, T, X, D] -> [B, E].

        `parallel` has a module for each block, whose output is added to that of its MLP.
        """
        shape = tokens_BTND.shape[:2]
        tokens_SND = tokens_BTND.flatten(0, 1)
        global_BGD = self.global_tokens.expand(shape[0], -1, -1)
        for index in range(self.tower.depth):
            prompts = prompts_JTXD[index]
            prompts_SXD = prompts.expand(*shape, *prompts.shape[-2:]).flatten(0, 1)
            global_BGD, tokens_SND, _ = self.tower.run_global_block(
                index,
                global_BGD,
                tokens_SND,
                prompts_SXD,
                only_global=index + 1 == self.tower.depth,
                parallel=parallel[index] if parallel else None,
            )
        return self.embed_video(global_BGD[:, :1])

    def _of_texts(self) -> Tensor:
        """Returns the text prompts of all blocks, [J, M, D of the text tower]."""
        count = self.options.text_prompts
        if self.options.prompt_space == "transformer":
            return cast(Tensor, self.to_text(self.mix(self.prompts)[:, :count]))
        copies: Tensor = self.to_text(self.prompts).unflatten(-1, (-1, text_width(self._clip)))
        return copies.transpose(1, 2).flatten(1, 2)[:, :count]
