"""Learned tokens in the texts: CoOp's context, and deep prompts of the text tower.

Shapes: N texts of L token ids, J prompted blocks, M learned tokens, D channels of the text tower,
E of the joint space.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip

# open_clip's modules are untyped, hence the casts in this file.


class PromptedTexts(nn.Module, ABC):
    """M vectors, the same for every text, behind its start token, for the first J blocks."""

    setting = "context_tokens"
    """Name of the setting with their number."""

    def __init__(self, clip: FrozenClip, tokens: int) -> None:
        super().__init__()
        text = text_tower(clip.model)
        advice = "set context_tokens to 0, or choose a CLIP tower such as ViT-B-32-quickgelu"
        embedding = getattr(text, "token_embedding", None)
        if not isinstance(embedding, nn.Embedding) or getattr(text, "cls_emb", None) is not None:
            raise ValueError(f"the text tower of {clip.name} is not open_clip's own; {advice}")
        if (pool := _pool_type(text)) not in ("argmax", "eos"):
            raise ValueError(f"{clip.name} pools its texts by {pool!r}, not at their end; {advice}")
        first, second = clip.tokenize(["one", "two"])[:, 0].tolist()
        if first != second:
            raise ValueError(f"the texts of {clip.name} have no start token; {advice}")
        most = int(text.context_length) - 3  # the start, a word and the end
        if not 1 <= tokens <= most:
            raise ValueError(
                f"{self.setting} must be from 1 to {most} for the texts of {clip.name}; got "
                f"{tokens}"
            )
        self.count = tokens

    @abstractmethod
    def prompts(self) -> Tensor:
        """Returns the vectors of the first J blocks, [J, M, D]."""

    def forward(self, model: nn.Module, tokens_NL: Tensor) -> Tensor:
        """Token ids [N, L] -> text embeddings [N, E] of `model`, a CLIP, L2-normalised.

        A text that is too long together with the vectors loses its last words.
        """
        text = text_tower(model)
        first, *deeper = self.prompts()
        # open_clip's encoder takes ids, not embeddings, so hooks insert the vectors behind the
        # embedding lookup and before the blocks. Encoder, mask and pooling are open_clip's.
        at_lookup = text.token_embedding.register_forward_hook
        hooks = [at_lookup(lambda _, ids, out: _insert(first, out))]
        for block, own in zip(text.transformer.resblocks[1:], deeper, strict=False):
            hooks.append(
                block.register_forward_pre_hook(
                    lambda _, inputs, own=own: (_insert(own, inputs[0]), *inputs[1:])
                )
            )
        try:
            tokens_NL = self.make_room(model, tokens_NL.to(first.device))
            return cast(Tensor, cast(Any, model).encode_text(tokens_NL, normalize=True))
        finally:
            for hook in hooks:
                hook.remove()

    def make_room(self, model: nn.Module, tokens_NL: Tensor) -> Tensor:
        """Shifts the words by M places and fills the places before them with the start id."""
        text = text_tower(model)
        count = self.count
        start_N1 = tokens_NL[:, :1]
        end_N = _end(text, tokens_NL)
        words_NR = tokens_NL[:, : tokens_NL.shape[1] - count].clone()
        is_cut_N = end_N >= words_NR.shape[1]
        words_NR[is_cut_N, -1] = tokens_NL[is_cut_N, end_N[is_cut_N]]
        return torch.cat([start_N1.expand(-1, 1 + count), words_NR[:, 1:]], dim=1)


class LearnedContext(PromptedTexts):
    """CoOp (Zhou et al., IJCV 2022): the vectors replace the embeddings of M words.

    A text reads START, context, words, END. With the template "{}" this is CoOp's unified context
    in front of the class name.
    """

    def __init__(self, clip: FrozenClip, tokens: int) -> None:
        super().__init__(clip, tokens)
        self.vectors = nn.Parameter(torch.empty(tokens, text_width(clip)))
        nn.init.normal_(self.vectors, std=0.02)

    def prompts(self) -> Tensor:
        """Returns the vectors of the first block, [1, M, D]."""
        return self.vectors[None]


class DeepContext(PromptedTexts):
    """Vectors that a method computes, for the first J blocks of the text tower."""

    setting = "text_prompts"

    def __init__(self, clip: FrozenClip, tokens: int, compute: Callable[[], Tensor]) -> None:
        super().__init__(clip, tokens)
        self.compute = compute

    def prompts(self) -> Tensor:
        """Returns the vectors of the first J blocks, [J, M, D]."""
        return self.compute()


def text_width(clip: FrozenClip) -> int:
    """Returns D, the number of channels of the text tower."""
    return int(text_tower(clip.model).token_embedding.embedding_dim)


def text_depth(clip: FrozenClip) -> int:
    """Returns the number of blocks of the text tower."""
    return len(text_tower(clip.model).transformer.resblocks)


def text_tower(model: nn.Module) -> Any:
    """Returns the module with the parts of the text tower: CLIP itself, or CustomTextCLIP.text."""
    return getattr(model, "text", model)


def _insert(vectors_MD: Tensor, tokens_NLD: Tensor) -> Tensor:
    """Returns the tokens with the vectors in their M places."""
    vectors_NMD = vectors_MD.to(tokens_NLD.dtype).expand(len(tokens_NLD), -1, -1)
    return torch.cat([tokens_NLD[:, :1], vectors_NMD, tokens_NLD[:, 1 + len(vectors_MD) :]], dim=1)


def _pool_type(text: Any) -> str | None:
    return getattr(text, "text_pool_type", getattr(text, "pool_type", None))


def _end(text: Any, tokens_NL: Tensor) -> Tensor:
    """Returns the position of the end-of-text token, [N], where open_clip pools a text."""
    if _pool_type(text) == "argmax":
        return tokens_NL.argmax(-1)
    end_id = int(getattr(text, "text_eos_id", getattr(text, "eos_id", -1)))
    return (tokens_NL == end_id).int().argmax(-1)
