"""The frozen CLIP vision tower, run block by block on open_clip's own weights.

Shapes: B videos, T frames, P patches per frame, S sequences of N tokens, X extra prompt tokens per
sequence, L = N + X, D channels, H heads of E channels.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from stop_core.clip.folded_block import HIDING_WIDTH, FoldedBlock

# open_clip's modules are untyped, hence the casts in this file.

_HIDDEN = -32768.0  # times the scale far below all scores; exact in bfloat16 and float16
UNFIT_ADVICE = "choose a CLIP vision transformer such as ViT-B-32-quickgelu, ViT-B-16 or ViT-L-14"


def in_float32(like: Tensor) -> AbstractContextManager[object]:
    """Returns a context without autocast on the device of `like`, for steps that need float32."""
    device = like.device.type
    # Without autocast no context is entered: an exported program cannot be saved with one.
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


class ImageTower(nn.Module):
    """A frozen vision tower of any kind, used as a whole; ValueError if images are not square."""

    def __init__(self, name: str, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual.requires_grad_(False).eval()
        height, width = to_2tuple(self.visual.image_size)
        if height != width:
            raise ValueError(
                f"{name} takes images of {height}x{width} pixels, not square; {UNFIT_ADVICE}"
            )
        self.image_size = int(height)
        # In a process that is reused, an earlier training has moved the weights to its GPU.
        device = next(self.visual.parameters()).device
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.visual, f"image_{name}"), device=device)
            self.register_buffer(name, values.view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def embedding_width(self) -> int:
        """E, the number of channels of the joint space."""
        size = self.image_size
        with torch.no_grad():
            return len(self.visual(torch.zeros(1, 3, size, size, device=self.mean.device))[0])

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode: a frozen tower is never trained."""
        del mode
        return super().train(False)

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 frames [F, H, W, 3] -> pixels as the tower takes them, [F, 3, H, W]."""
        pixels = frames.to(self.mean.device).permute(0, 3, 1, 2).float().div(255)
        return (pixels - self.mean) / self.std


class FrozenTower(ImageTower):
    """A frozen open_clip vision transformer whose blocks take extra prompt tokens.

    Prompt tokens are keys and values of the other tokens. Their own output is computed only on
    request, since the next block often replaces it. Raises ValueError if the tower is not a CLIP
    vision transformer with a CLS token.
    """

    def __init__(self, name: str, visual: nn.Module) -> None:
        if reason := unfit(visual):
            raise ValueError(f"{name} {reason}; {UNFIT_ADVICE}")
        super().__init__(name, visual)
        first = cast(ResidualAttentionBlock, self.visual.transformer.resblocks[0])
        self.heads = int(first.attn.num_heads)
        self.width = int(first.attn.embed_dim)
        self.depth = len(self.visual.transformer.resblocks)
        self.grid: tuple[int, int] = tuple(self.visual.grid_size)
        self._folded_blocks: dict[tuple[int, torch.dtype, bool], FoldedBlock] = {}

    @property
    def patches(self) -> int:
        """P, the number of patches per frame."""
        return self.grid[0] * self.grid[1]

    @property
    def embedding_width(self) -> int:
        """E, the number of channels of the joint space."""
        return len(self.project(torch.zeros(self.width, device=self.mean.device)))

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        """The frozen transformer blocks, in order."""
        return list(self.visual.transformer.resblocks)

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """uint8 frames [F, H, W, 3] -> tokens [F, 1 + P, D], the CLS token first."""
        return self.embed_pixels(self.normalise(frames))

    def cls_token(self) -> Tensor:
        """Returns the CLS token that enters the first block, [D]: the same for every frame."""
        size = self.image_size
        return self.embed(torch.zeros(1, size, size, 3, dtype=torch.uint8))[0, 0]

    def embed_pixels(self, pixels_F3HW: Tensor) -> Tensor:
        """Normalised pixels -> tokens [F, 1 + P, D], with gradients to the pixels."""
        # Under autocast the patches are embedded in its type; the residual stream is float32.
        return cast(Tensor, self.visual._embeds(pixels_F3HW)).float()

    @torch.no_grad()
    def cls_attention(
        self, index: int, cls_BCD: Tensor, h_BTPD: Tensor, variance_BTP1: Tensor
    ) -> Tensor:
        """Returns A_raw, the attention of the CLS tokens to the patches of each frame, [B, T, P].

        Computed with the query and key projections of block `index`, softmax over the patches of
        one frame, averaged over heads. `cls` is [B, 1, D] (joint) or [B, T, D] (frame attention);
        `variance` is that of the channels of `h`.
        """
        block = self._folded(index, torch.float32)
        query_BCD = block.query(block.norm_1(cls_BCD.float()))
        query_HXE = query_BCD.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        # The key projection is applied to the few queries instead of all tokens. Its bias adds a
        # constant to all scores of a query, which does not change the softmax.
        query_XDH = (query_HXE @ block.centred_key).permute(1, 2, 0)
        # One batch of patches per query, as a view: no copy of the tokens, no normalised tokens.
        h_XND = h_BTPD.flatten(1, 2) if cls_BCD.shape[1] == 1 else h_BTPD.flatten(0, 1)
        scores_BTPH = torch.bmm(h_XND.float(), query_XDH).view(*h_BTPD.shape[:3], self.heads)
        deviation_BTP1 = (variance_BTP1 + block.eps_1).rsqrt()
        return (scores_BTPH * deviation_BTP1).softmax(2).mean(-1)

    def run_block(
        self,
        index: int,
        tokens_SND: Tensor,
        prompts_SXD: Tensor | None = None,
        presence_SX: Tensor | None = None,
        *,
        carry_prompts: bool = False,
        only_cls: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs block `index` on the tokens and their prompts.

        `presence` is 1 for a prompt and 0 for an empty slot, which is masked in the attention; its
        gradient, if any, is that of scaling the prompt's value. Default: no slot is empty.

        Returns the tokens, [S, N, D], or only the first of each sequence, [S, 1, D], with
        `only_cls`; and the prompts, [S, X, D], with `carry_prompts`, else None.
        """
        dtype = _compute_dtype(tokens_SND)
        hiding = presence_SX is not None and _hides_by_channel(tokens_SND)
        block = self._folded(index, dtype, hiding=hiding)
        normed = block.norm_1(tokens_SND).to(dtype)
        queries, seen, residual = normed, normed, tokens_SND
        if only_cls:
            queries, residual = normed[:, :1], tokens_SND[:, :1]
        mask = None
        if prompts_SXD is not None:
            seen = torch.cat([normed, block.norm_1(prompts_SXD).to(dtype)], dim=1)
            if carry_prompts:
                queries, residual = seen, torch.cat([tokens_SND, prompts_SXD], dim=1)
            if presence_SX is not None and not hiding:  # mask the empty slots: [S, 1, 1, L]
                present_SX = presence_SX.detach() > 0.5
                mask = F.pad(present_SX, (tokens_SND.shape[1], 0), value=True)[:, None, None]
        mapped = block.qkv(seen) if queries is seen else block.key_value(seen)
        if presence_SX is not None and hiding:
            mapped = _hide_last(mapped, presence_SX, self.heads, block.inner)
        *first, key, value = mapped.split(block.inner, -1)
        query = first[0] if first else block.query(queries)
        if presence_SX is not None and presence_SX.requires_grad:
            value = cast(Tensor, _ScaleLast.apply(value, presence_SX))
        out = self._finish(index, residual, block.out(self._mix(query, key, value, mask)))
        if prompts_SXD is None or not carry_prompts:
            return out, None
        out_SND, out_SXD = out.split([tokens_SND.shape[1], prompts_SXD.shape[1]], dim=1)
        return out_SND, out_SXD

    def run_global_block(
        self,
        index: int,
        global_BGD: Tensor,
        tokens_SND: Tensor,
        prompts_SXD: Tensor | None = None,
        presence_SX: Tensor | None = None,
        *,
        carry_prompts: bool = False,
        only_global: bool = False,
        parallel: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Runs block `index` on global tokens and the tokens of single frames, S = B * T.

        Global tokens attend to each other and to all tokens of their video; a frame attends to
        itself and to the global tokens (DGL, Yang et al., AAAI 2024). Prompts are those of
        `run_block`. `parallel` sees the tokens of the MLP before their norm; its output is added.

        Returns the global tokens, [B, G, D]; the frames' tokens, [S, N, D], unchanged with
        `only_global`; and the prompts, [S, X, D], with `carry_prompts`, else None.
        """
        dtype = _compute_dtype(tokens_SND)
        hiding = presence_SX is not None and _hides_by_channel(tokens_SND)
        block = self._folded(index, dtype, hiding=hiding)
        videos = global_BGD.shape[0]  # `len` would fix the batch of an exported program
        frames = tokens_SND.shape[0] // videos
        count = tokens_SND.shape[1]
        all_SLD = tokens_SND if prompts_SXD is None else torch.cat([tokens_SND, prompts_SXD], 1)
        mapped = block.qkv(block.norm_1(all_SLD).to(dtype))
        if presence_SX is not None and hiding:
            mapped = _hide_last(mapped, presence_SX, self.heads, block.inner)
        query, key, value = mapped.chunk(3, -1)
        global_query, global_key, global_value = block.qkv(
            block.norm_1(global_BGD).to(dtype)
        ).chunk(3, -1)
        frame_mask = global_mask = None
        if presence_SX is not None and presence_SX.requires_grad:
            value = cast(Tensor, _ScaleLast.apply(value, presence_SX))
        if presence_SX is not None and not hiding:
            present_SL = F.pad(presence_SX.detach() > 0.5, (count, 0), value=True)
            front = global_BGD.shape[1]
            frame_mask = F.pad(present_SL, (front, 0), value=True)[:, None, None]
            by_video = present_SL.reshape(videos, -1)
            global_mask = F.pad(by_video, (front, 0), value=True)[:, None, None]

        def with_global(of_global: Tensor, of_frames: Tensor) -> Tensor:
            expanded = of_global[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
            return torch.cat([expanded, of_frames], dim=1)

        def over_video(of_global: Tensor, of_frames: Tensor) -> Tensor:
            of_videos = of_frames.reshape(videos, -1, of_frames.shape[-1])
            return torch.cat([of_global, of_videos], dim=1)

        mixed = self._mix(
            global_query, over_video(global_key, key), over_video(global_value, value), global_mask
        )
        out_BGD = self._finish(index, global_BGD, block.out(mixed), parallel)
        if only_global:
            return out_BGD, tokens_SND, None
        if not carry_prompts:
            query, all_SLD = query[:, :count], tokens_SND
        mixed = self._mix(
            query, with_global(global_key, key), with_global(global_value, value), frame_mask
        )
        out_SLD = self._finish(index, all_SLD, block.out(mixed), parallel)
        carried = out_SLD[:, count:] if carry_prompts and prompts_SXD is not None else None
        return out_BGD, out_SLD[:, :count], carried

    def attend(self, index: int, tokens_SND: Tensor) -> Tensor:
        """Returns the output of block `index`'s attention, without the residual, [S, N, D]."""
        dtype = _compute_dtype(tokens_SND)
        block = self._folded(index, dtype)
        query, key, value = block.qkv(block.norm_1(tokens_SND).to(dtype)).chunk(3, -1)
        return block.out(self._mix(query, key, value, None))

    def feed_forward(self, index: int, tokens_SND: Tensor) -> Tensor:
        """Returns the output of block `index`'s MLP, without the residual, [S, N, D]."""
        dtype = _compute_dtype(tokens_SND)
        block = self._folded(index, dtype)
        return block.proj(block.activation(block.fc(block.norm_2(tokens_SND).to(dtype))))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention in all heads of [S, L, D], before the output projection."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        scale = (self.width // self.heads) ** -0.5  # without the channels that hide keys
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return mixed.transpose(1, 2).flatten(2)

    def _finish(
        self, index: int, residual: Tensor, attended: Tensor, parallel: nn.Module | None = None
    ) -> Tensor:
        """Returns the output of block `index` from its input and its attention's output."""
        out = residual + attended
        mlp = self.feed_forward(index, out)
        return out + mlp if parallel is None else out + mlp + parallel(out)

    def _folded(self, index: int, dtype: torch.dtype, *, hiding: bool = False) -> FoldedBlock:
        """Returns block `index` in its folded form: cached, and rebuilt if its weights changed."""
        block = self.blocks[index]
        key = index, dtype, hiding
        if key in self._folded_blocks and torch.compiler.is_compiling():
            return self._folded_blocks[key]
        state = tuple((p.data_ptr(), p._version) for p in block.parameters())
        folded = self._folded_blocks.get(key)
        if folded is None or folded.made_from != state:
            folded = FoldedBlock(block, dtype, state, hiding=hiding)
            self._folded_blocks[key] = folded
        return folded

    def project(self, cls: Tensor) -> Tensor:
        """CLS tokens [..., D] after the last block -> the joint space [..., E], not normalised."""
        with in_float32(cls):
            out = self.visual.ln_post(cls)
            return cast(Tensor, out if self.visual.proj is None else out @ self.visual.proj)


class _HideLast(torch.autograd.Function):
    """Fills channels of the last rows of `mapped`, in place; the gradient does not change.

    Autograd is not told of the change: nothing before it has stored these values.
    """

    @staticmethod
    def forward(ctx: Any, mapped: Tensor, empty_SX: Tensor, channels_H: slice) -> Tensor:
        last = mapped[:, mapped.shape[1] - empty_SX.shape[1] :, channels_H]
        last.masked_fill_(empty_SX[..., None], _HIDDEN)
        return mapped.view_as(mapped)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def _hide_last(mapped: Tensor, presence_SX: Tensor, heads: int, inner: int) -> Tensor:
    """Hides the keys of empty slots, which are the last ones, by their first hiding channel.

    `mapped` [S, L, ...] ends with the channels of keys and values, `inner` of each. It is changed
    in place, but when compiled.
    """
    first, step = mapped.shape[-1] - 2 * inner + inner // heads - HIDING_WIDTH, inner // heads
    channels_H = slice(first, mapped.shape[-1] - inner, step)
    empty_SX = presence_SX.detach() <= 0.5
    if not torch.compiler.is_compiling():
        return cast(Tensor, _HideLast.apply(mapped, empty_SX, channels_H))
    hidden_SL = F.pad(_HIDDEN * empty_SX, (mapped.shape[1] - empty_SX.shape[1], 0))
    place = torch.arange(mapped.shape[-1], device=mapped.device)
    is_channel = (
        (place >= first) & (place < mapped.shape[-1] - inner) & (place % step == first % step)
    )
    return mapped + (hidden_SL[..., None] * is_channel).to(mapped.dtype)


class _ScaleLast(torch.autograd.Function):
    """Multiplies the last rows of `value` by `presence`, which is 1 for all unmasked rows.

    So the forward pass changes nothing; only the gradient of the presence is computed.
    """

    @staticmethod
    def forward(ctx: Any, value_SLD: Tensor, presence_SX: Tensor) -> Tensor:
        ctx.save_for_backward(value_SLD[:, value_SLD.shape[1] - presence_SX.shape[1] :])
        return value_SLD.view_as(value_SLD)

    @staticmethod
    def backward(ctx: Any, gradient_SLD: Tensor) -> tuple[Tensor, Tensor]:
        (value_SXD,) = ctx.saved_tensors
        last_SXD = gradient_SLD[:, gradient_SLD.shape[1] - value_SXD.shape[1] :]
        return gradient_SLD, (last_SXD * value_SXD).sum(-1, dtype=torch.float32)


def _hides_by_channel(like: Tensor) -> bool:
    """Whether a channel hides empty slots, instead of a mask: GPUs' flash kernels take no mask."""
    return like.device.type != "cpu"


def _compute_dtype(tokens: Tensor) -> torch.dtype:
    """Returns the type of the matrix products: that of autocast, if the device supports it."""
    device = tokens.device.type
    if not torch.is_autocast_enabled(device):
        return tokens.dtype
    dtype = torch.get_autocast_dtype(device)
    # On a CPU without bfloat16 instructions it is several times slower than float32.
    return torch.float32 if device == "cpu" and not _cpu_has(dtype) else dtype


# A compiler cannot trace the question.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _cpu_has(dtype: torch.dtype) -> bool:
    """Returns whether oneDNN multiplies this type natively; True if PyTorch cannot say."""
    names = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    ask = getattr(torch.ops.mkldnn, names.get(dtype, ""), None)
    return True if ask is None else bool(ask())


def unfit(visual: nn.Module) -> str:
    """Returns why methods cannot run the blocks of a tower, for a message; "" if they can."""
    if not isinstance(visual, VisionTransformer):
        return f"has a vision tower of kind {type(visual).__name__}, not open_clip's ViT"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "does not pool its frames with a CLS token"
    if not all(type(b) is ResidualAttentionBlock for b in visual.transformer.resblocks):
        return "has transformer blocks of an unusual kind"
    return ""
