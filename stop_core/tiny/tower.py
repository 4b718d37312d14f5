"""The tiny CLIPs: open_clip models of half a million parameters, and their tokenizer.

Images of 32 x 32 or, for "tiny-64", 64 x 64 pixels in patches of 8 (16 or 64 patches a frame), a
joint space of 64. They are pretrained on the stills of `stop_core.tiny.stills` and ship with their
weights, so that everything built on a CLIP can be tried on a laptop in seconds.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, resize_pos_embed, set_model_preprocess_cfg
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from stop_core.tiny.shipped import PATCH_SIZE, TINY, TinyTower

CONTEXT_LENGTH = 28
EMBED_DIM = 64
BUCKETS = 64
# Two buckets a word tell 4096 words apart; one would confuse the names of a 51-class dataset.
BUCKETS_A_WORD = 2

# The order is the order of the rows of the shipped embedding: only append, then pretrain again.
_WORDS = """
    a an and at image moving of photo picture shape the video
    small large red green blue yellow purple cyan orange white
    circle square triangle cross ring bar top bottom left right center
"""
VOCABULARY = tuple(_WORDS.split())

_VISION = {"layers": 4, "width": 96, "head_width": 32, "patch_size": PATCH_SIZE}
_TEXT = {"context_length": CONTEXT_LENGTH, "width": 64, "heads": 2, "layers": 2}


class TinyTokenizer:
    """Turns texts into token ids, LongTensor [N, 28].

    Words are cleaned and split as open_clip's `SimpleTokenizer` does. Ids: 0 pads, then one for
    each word of `VOCABULARY`, then `BUCKETS` for all other words, then start and end of text. The
    end of text is the largest id, because open_clip pools a text at its arg-max.

    A word outside of the vocabulary becomes `BUCKETS_A_WORD` buckets by a hash of its letters: it
    means nothing to the model, but different names get different embeddings, every time.
    """

    def __init__(self) -> None:
        self.context_length = CONTEXT_LENGTH
        self.sot_token_id = 1 + len(VOCABULARY) + BUCKETS
        self.eot_token_id = self.sot_token_id + 1
        self.vocab_size = self.eot_token_id + 1
        self._splitter = SimpleTokenizer(context_length=CONTEXT_LENGTH)
        self._ids = {word: 1 + i for i, word in enumerate(VOCABULARY)}

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`, without start, end or padding."""
        ids: list[int] = []
        for word in self._splitter.pat.findall(self._splitter.clean_fn(text)):
            known = self._ids.get(word)
            ids += [known] if known is not None else self._buckets(word)
        return ids

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Ids of `texts`, [N, context_length]; a longer text is cut and keeps its end-of-text."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        length = context_length or self.context_length
        ids_NL = torch.zeros(len(texts), length, dtype=torch.long)
        for row_L, text in zip(ids_NL, texts, strict=True):
            ids = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            row_L[: len(ids)] = torch.tensor(ids)
        return ids_NL

    @staticmethod
    def _buckets(word: str) -> list[int]:
        # Not hash(): Python salts it anew in every process.
        digest = hashlib.sha256(word.encode()).digest()
        return [1 + len(VOCABULARY) + byte % BUCKETS for byte in digest[:BUCKETS_A_WORD]]


def vision_config(tower: TinyTower) -> dict[str, Any]:
    """The vision tower as open_clip configures one."""
    return {**_VISION, "image_size": tower.image_size}


def build_tiny_clip(pretrained: bool, tower: TinyTower = TINY) -> CLIP:
    """A tiny CLIP in fp32, in evaluation mode; `model.visual.image_mean` and `image_std` are .5.

    Without `pretrained` the weights are drawn from torch's global generator. Raises
    FileNotFoundError where the packaged weights are missing, ValueError where they do not fit.
    """
    model = CLIP(
        EMBED_DIM, vision_config(tower), {**_TEXT, "vocab_size": TinyTokenizer().vocab_size}
    )
    half = (0.5, 0.5, 0.5)
    set_model_preprocess_cfg(model, {"size": tower.image_size, "mean": half, "std": half})
    if pretrained:
        load_weights(model, tower.weights)
    else:
        _initialise(model, tower.grid)
    return model.eval()


def load_weights(model: nn.Module, path: Path, *, resize: bool = False) -> None:
    """Loads the weights that `stop_core.tiny.pretrain` wrote, cast to the model's own dtype.

    With `resize`, those of another size of images fit as well: the embeddings of the positions are
    interpolated to the grid of `model`, as open_clip does it, and all else is as it was.
    """
    again = "run `python -m stop_core.tiny.pretrain` with its command in the .json beside them"
    if not path.is_file():
        raise FileNotFoundError(f"no tiny CLIP weights at {path}; {again}")
    state = {name: value.float() for name, value in load_file(path).items()}
    if resize:
        resize_pos_embed(state, model)  # it cannot in half precision
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != wanted:
        raise ValueError(f"the weights in {path} are of another tiny CLIP than this one; {again}")
    model.load_state_dict(state)


@torch.no_grad()
def _initialise(model: CLIP, grid: int) -> None:
    """Starts position as sine and cosine: learned from noise, position came far later."""
    sincos = get_2d_sincos_pos_embed(_VISION["width"], grid, cls_token=True)
    model.visual.positional_embedding.copy_(torch.from_numpy(sincos))
    model.visual.conv1.weight.mul_(2)
    nn.init.normal_(model.token_embedding.weight, std=0.1)
