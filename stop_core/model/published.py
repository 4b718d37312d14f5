"""STOP as its authors published it: another model than the equations of the paper.

Repository zhoujiahuan1991/CVPR2025-STOP at a47eb22, for any tower. It is DGL with prompts on the
pixels, frame prompts that follow the video, and adapters; each is an option, so that a table can
walk from this model to the paper's equations (docs/model.md).

Shapes: B videos, T frames of H x W pixels, a grid of G x G = P patches, X prompts of a frame,
D channels of the tower.
"""

from typing import cast

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import in_float32
from stop_core.model.coupled import Dgl
from stop_core.model.learned_context import text_tower, text_width
from stop_core.model.video_model import check_frames
from stop_core.settings.method_options import PublishedOptions

_SCALE = 0.05  # of the pixel prompts and of the frame prompts
_ADAPTER_WIDTH, _ADAPTER_SCALE = 32, 0.1


class StopPublished(Dgl):
    """The published code of STOP, with its differences to the paper as options."""

    options: PublishedOptions
    not_compiled = "its gradient differs from the one without compilation (torch 2.14.1)"

    def __init__(self, clip: FrozenClip, options: PublishedOptions) -> None:
        super().__init__(clip, options)
        tower = self.tower
        self.pixels: PixelPrompts | None = None
        if options.pixel_prompts != "none" or options.change_prompts:
            self.pixels = PixelPrompts(tower.grid, options)
        self.changes: ChangePrompts | None = None
        if options.change_prompts:
            self.changes = ChangePrompts(tower.width, tower.heads, tower.patches, options)
        depth = tower.depth if options.parallel_adapters else 0
        self.adapters = nn.ModuleList(ParallelAdapter(tower.width) for _ in range(depth))
        blocks = text_tower(clip.model).transformer.resblocks if options.parallel_adapters else []
        self.text_adapters = nn.ModuleList(ParallelAdapter(text_width(clip)) for _ in blocks)

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        check_frames(frames, self.image_size)
        shape = frames.shape[:2]
        prompts = self.frame_prompts(shape[1])
        if self.pixels is None:
            tokens_BTND = self.embed_frames(frames)
        else:
            plain_BT3HW = self.tower.normalise(frames.flatten(0, 1)).unflatten(0, shape)
            prompted, chosen_BTP = self.pixels(plain_BT3HW)
            tokens_BTND = self.tower.embed_pixels(prompted.flatten(0, 1)).unflatten(0, shape)
            if self.changes is not None:
                prompts = prompts[:, None] + self.changes(tokens_BTND[:, :, 1:], chosen_BTP)
        return self.encode_embedded(tokens_BTND, prompts, list(self.adapters))

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the embeddings [N, E] of token ids on any device; N is at least 1."""
        hooks = []
        blocks = text_tower(self.clip).transformer.resblocks
        for index, adapter in enumerate(self.text_adapters):
            # The norm before the MLP sees the tokens that the adapter has to see.
            hooks += cast(ParallelAdapter, adapter).attach(blocks[index].ln_2, blocks[index])
        try:
            return super().encode_tokens(tokens_NL)
        finally:
            for hook in hooks:
                hook.remove()


class ParallelAdapter(nn.Module):
    """0.1 * up(prelu(down(x))), which the published code calls LoRA."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, _ADAPTER_WIDTH), nn.PReLU(), nn.Linear(_ADAPTER_WIDTH, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return cast(Tensor, _ADAPTER_SCALE * self.layers(tokens))

    def attach(self, norm: nn.Module, block: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Adds the output for the input of `norm` to the output of `block`; returns the hooks."""
        seen: list[Tensor] = []
        return [
            norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
            block.register_forward_hook(lambda _, inputs, out: out + self(seen.pop())),
        ]


class SameConv3d(nn.Conv3d):
    """A convolution that keeps the size, by Fourier transforms in float32: its kernel is large.

    Kernels have odd sizes. Choices use direct convolutions, which keep equal means equal.
    """

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(inside, outside, kernel, padding="same")

    def forward(self, input: Tensor) -> Tensor:
        """[B, in, T, H, W] -> [B, out, T, H, W]."""
        if torch.compiler.is_exporting():
            return super().forward(input)  # ONNX has no complex numbers
        halves = [length // 2 for length in self.kernel_size]
        lengths = [
            next_fast_len(max(size + half, 2 * half + 1), real=True)
            for size, half in zip(input.shape[2:], halves, strict=True)
        ]
        with in_float32(input):
            x = torch.fft.rfftn(input.to(self.weight.dtype), lengths)
            kernel = torch.fft.rfftn(self.weight.flip(2, 3, 4), lengths)
            product = x[:, 0, None] * kernel[:, 0]
            # One channel at a time is faster than many products of small matrices.
            for channel in range(1, self.in_channels):
                product = torch.addcmul(product, x[:, channel, None], kernel[:, channel])
            out: Tensor = torch.fft.irfftn(product, lengths)
            for dim, half in enumerate(halves, 2):
                out = out.narrow(dim, half, input.shape[dim])
            return out + cast(Tensor, self.bias)[:, None, None, None]


class PixelPrompts(nn.Module):
    """Prompts added to the pixels, and the choice, without a gradient, of groups of pixels."""

    def __init__(self, grid: tuple[int, int], options: PublishedOptions) -> None:
        super().__init__()
        self.grid = grid
        self.options = options
        kernel = (3, 11, 11)
        self.dropout = nn.Dropout(options.prompt_dropout)
        self.choice = nn.Conv3d(3, 1, (5, 11, 11), padding="same")
        if options.pixel_prompts == "none":
            return
        self.convs = nn.Sequential(
            SameConv3d(3, 9, kernel),
            SameConv3d(9, 9, kernel),
            nn.PReLU(),
            SameConv3d(9, 9, kernel),
            nn.PReLU(),
            SameConv3d(9, 16, kernel),
        )
        self.mlp = nn.Sequential(nn.Linear(16, 16), nn.PReLU(), nn.Linear(16, 3))

    def forward(self, pixels_BT3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the prompted pixels, and which groups are chosen, [B, T, P]: 1 or 0."""
        chosen_BTGG = self.choose(pixels_BT3HW)
        chosen_BTP = chosen_BTGG.flatten(2)
        if self.options.pixel_prompts == "none":
            return pixels_BT3HW, chosen_BTP
        features = self.dropout(self.convs(pixels_BT3HW.transpose(1, 2)))
        # The published code drops the three channels twice.
        prompts = self.dropout(self.dropout(self.mlp(features.movedim(1, -1)))).movedim(-1, 2)
        rows, columns = (
            size // groups for size, groups in zip(pixels_BT3HW.shape[-2:], self.grid, strict=True)
        )
        if self.options.pixel_groups == "comb":
            mask = chosen_BTGG.repeat(1, 1, rows, columns)
        else:
            mask = chosen_BTGG.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
        everywhere = 1.0 if self.options.pixel_prompts == "twice" else 0.0
        return pixels_BT3HW + _SCALE * prompts * (everywhere + mask[:, :, None]), chosen_BTP

    @torch.no_grad()
    def choose(self, pixels_BT3HW: Tensor) -> Tensor:
        """Returns 1 for the `chosen_patches` groups with the largest means, else 0, [B, T, G, G].

        With "comb", a group is all pixels whose row and column leave the same remainders modulo G.
        Of equal means at the boundary none is chosen.
        """
        scores_BTHW = self.choice(pixels_BT3HW.transpose(1, 2))[:, 0]
        height, width = self.grid
        if self.options.pixel_groups == "comb":
            parts = scores_BTHW.unflatten(3, (-1, width)).unflatten(2, (-1, height))
            means_BTGG = parts.mean((2, 4))
        else:
            parts = scores_BTHW.unflatten(3, (width, -1)).unflatten(2, (height, -1))
            means_BTGG = parts.mean((3, 5))
        ordered = means_BTGG.flatten(2).sort(2, descending=True).values
        if self.options.chosen_patches >= ordered.shape[2]:
            return torch.ones_like(means_BTGG)
        bar = ordered[:, :, self.options.chosen_patches, None, None]
        chosen: Tensor = means_BTGG > bar
        return chosen.to(means_BTGG.dtype)


class ChangePrompts(nn.Module):
    """X prompts for every frame, from the patches of all frames, scaled by 1 + W^t."""

    def __init__(self, width: int, heads: int, patches: int, options: PublishedOptions) -> None:
        super().__init__()
        self.scope = options.change_scale
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        kernel = (3, 15, 25)
        self.convs = nn.Sequential(SameConv3d(1, 9, kernel), nn.PReLU(), SameConv3d(9, 1, kernel))
        self.mlp = nn.Sequential(
            nn.Linear(patches, 16), nn.PReLU(), nn.Linear(16, options.frame_prompts)
        )
        self.change = nn.Conv3d(1, 1, (5, 11, 11), padding="same")

    def forward(self, h_BTPD: Tensor, chosen_BTP: Tensor) -> Tensor:
        """Returns the prompts that are added in every block, [B, T, X, D]."""
        shape = h_BTPD.shape[1:3]
        flat = h_BTPD.flatten(1, 2)
        volume = self.attention(flat, flat, flat, need_weights=False)[0].unflatten(1, shape)[
            :, None
        ]
        energy_BTPD = self.change(volume)[:, 0] * (1 + chosen_BTP[..., None])
        means_BT = energy_BTPD.mean((2, 3))
        low, high = means_BT.min(), means_BT.max()
        if self.scope == "video":
            low, high = means_BT.amin(1, keepdim=True), means_BT.amax(1, keepdim=True)
        # Without change there is nothing to scale; the published code divides by zero.
        W_t = (means_BT - low) / (high - low).clamp(min=torch.finfo(means_BT.dtype).tiny)
        prompts_BTDX = self.mlp(self.convs(volume)[:, 0].transpose(2, 3))
        prompts_BTXD: Tensor = prompts_BTDX.transpose(2, 3) * (1 + W_t[..., None, None])
        return _SCALE * prompts_BTXD
