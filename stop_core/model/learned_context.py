"""Learned context tokens for the text tower (CoOp, Zhou et al., IJCV 2022).

Shapes: N texts of L token ids, M context tokens, D channels of the text tower, E of the joint
space.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip

# open_clip's modules are untyped, hence the casts in this file.


class LearnedContext(nn.Module):
    """M learned vectors, the same for every text, between its start token and its first word.

    They replace the embeddings of M words: a text reads START, context, words, END. With the
    template "{}" this is CoOp's unified context in front of the class name.

    Raises:
        ValueError: if the text tower has fewer than `tokens` free places, or is not open_clip's
            own.
    """

    def __init__(self, clip: FrozenClip, tokens: int) -> None:
        super().__init__()
        _refuse_unsupported(clip)
        text = _text_tower(clip.model)
        most = int(text.context_length) - 3  # the start, a word and the end
        if not 1 <= tokens <= most:
            raise ValueError(
                f"context_tokens must be from 1 to {most} for the texts of {clip.name}, or 0 for "
                f"none; got {tokens}"
            )
        self.vectors = nn.Parameter(torch.empty(tokens, text.token_embedding.embedding_dim))
        nn.init.normal_(self.vectors, std=0.02)

    def forward(self, model: nn.Module, tokens_NL: Tensor) -> Tensor:
        """Token ids [N, L] -> text embeddings [N, E] of `model`, a CLIP, L2-normalised.

        A text that is too long together with the context loses its last words.
        """
        text = _text_tower(model)
        # open_clip's encoder takes ids, not embeddings, so a hook inserts the context after the
        # embedding lookup. The encoder, its mask and its pooling are open_clip's.
        hook = text.token_embedding.register_forward_hook(self._replace)
        try:
            tokens_NL = self.make_room(model, tokens_NL.to(self.vectors.device))
            return cast(Tensor, cast(Any, model).encode_text(tokens_NL, normalize=True))
        finally:
            hook.remove()

    def make_room(self, model: nn.Module, tokens_NL: Tensor) -> Tensor:
        """Shifts the words by M places and fills the places before them with the start id."""
        text = _text_tower(model)
        count = len(self.vectors)
        start_N1 = tokens_NL[:, :1]
        end_N = _end(text, tokens_NL)
        words_NR = tokens_NL[:, : tokens_NL.shape[1] - count].clone()
        is_cut_N = end_N >= words_NR.shape[1]
        words_NR[is_cut_N, -1] = tokens_NL[is_cut_N, end_N[is_cut_N]]
        return torch.cat([start_N1.expand(-1, 1 + count), words_NR[:, 1:]], dim=1)

    def _replace(self, module: nn.Module, inputs: Any, embedded_NLD: Tensor) -> Tensor:
        """Writes the vectors to the places that `make_room` left for them."""
        del module, inputs
        count = len(self.vectors)
        context_NMD = self.vectors.to(embedded_NLD.dtype).expand(len(embedded_NLD), -1, -1)
        parts = [embedded_NLD[:, :1], context_NMD, embedded_NLD[:, 1 + count :]]
        return torch.cat(parts, dim=1)


def _text_tower(model: nn.Module) -> Any:
    """Returns the module with the parts of the text tower: CLIP itself, or CustomTextCLIP.text."""
    return getattr(model, "text", model)


def _pool_type(text: Any) -> str | None:
    return getattr(text, "text_pool_type", getattr(text, "pool_type", None))


def _end(text: Any, tokens_NL: Tensor) -> Tensor:
    """Returns the position of the end-of-text token, [N], where open_clip pools a text."""
    if _pool_type(text) == "argmax":
        return tokens_NL.argmax(-1)
    end_id = int(getattr(text, "text_eos_id", getattr(text, "eos_id", -1)))
    return (tokens_NL == end_id).int().argmax(-1)


def _refuse_unsupported(clip: FrozenClip) -> None:
    """Raises ValueError for a text tower whose texts cannot have a context."""
    text = _text_tower(clip.model)
    advice = "set context_tokens to 0, or choose a CLIP tower such as ViT-B-32-quickgelu"
    embedding = getattr(text, "token_embedding", None)
    if not isinstance(embedding, nn.Embedding) or getattr(text, "cls_emb", None) is not None:
        raise ValueError(f"the text tower of {clip.name} is not open_clip's own; {advice}")
    if (pool := _pool_type(text)) not in ("argmax", "eos"):
        raise ValueError(f"{clip.name} pools its texts by {pool!r}, not at their end; {advice}")
    first, second = clip.tokenize(["one", "two"])[:, 0].tolist()
    if first != second:
        raise ValueError(f"the texts of {clip.name} have no start token; {advice}")
