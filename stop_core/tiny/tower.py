"""The tiny CLIPs: open_clip models of half a million parameters, and their tokenizer.

Images have 32 x 32 or, for "tiny-64", 64 x 64 pixels in patches of 8 (16 or 64 patches per
frame); the joint space has 64 dimensions. `tools/tiny_clip` pretrains them on rendered stills. They
ship with their weights, so that code built on a CLIP can be tried on a laptop in seconds.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from open_clip.model import CLIP, resize_pos_embed, set_model_preprocess_cfg
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from stop_core.tiny.shipped import BLOCKS, PATCH_SIZE, TINY, WIDTH, TinyTower

CONTEXT_LENGTH = 28
EMBED_DIM = 64
BUCKETS = 64
# Two buckets per word separate 4096 words; one would confuse the names of a 51-class dataset.
BUCKETS_A_WORD = 2

# In the order of the rows of the shipped embedding: only append words, then pretrain again.
_WORDS = """
    a an and at image moving of photo picture shape the video
    small large red green blue yellow purple cyan orange white
    circle square triangle cross ring bar top bottom left right center
"""
VOCABULARY = tuple(_WORDS.split())

_VISION = {"layers": BLOCKS, "width": WIDTH, "head_width": 32, "patch_size": PATCH_SIZE}
_TEXT = {"context_length": CONTEXT_LENGTH, "width": 64, "heads": 2, "layers": 2}


class TinyTokenizer:
    """Turns texts into token ids, LongTensor [N, 28].

    Words are cleaned and split as open_clip's `SimpleTokenizer` does. Ids: 0 pads, then one for
    each word of `VOCABULARY`, then `BUCKETS` for all other words, then start and end of text. The
    end of text is the largest id, because open_clip pools a text at its arg-max.

    A word outside of the vocabulary becomes `BUCKETS_A_WORD` buckets by a hash of its letters: it
    has no meaning to the model, but different names reliably get different embeddings.
    """

    def __init__(self) -> None:
        self.context_length = CONTEXT_LENGTH
        self.sot_token_id = 1 + len(VOCABULARY) + BUCKETS
        self.eot_token_id = self.sot_token_id + 1
        self.vocab_size = self.eot_token_id + 1
        self._splitter = _open_clips_tokenizer()
        self._ids = {word: 1 + i for i, word in enumerate(VOCABULARY)}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the words of `text`, without start, end or padding."""
        ids: list[int] = []
        for word in self._splitter.pat.findall(self._splitter.clean_fn(text)):
            known = self._ids.get(word)
            ids += [known] if known is not None else self._buckets(word)
        return ids

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Returns ids of `texts`, [N, context_length]; truncated texts keep their end of text."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        length = context_length or self.context_length
        ids_NL = torch.zeros(len(texts), length, dtype=torch.long)
        for row_L, text in zip(ids_NL, texts, strict=True):
            ids = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            row_L[: len(ids)] = torch.tensor(ids)
        return ids_NL

    @staticmethod
    def _buckets(word: str) -> list[int]:
        # Not hash(): Python salts it differently in every process.
        digest = hashlib.sha256(word.encode()).digest()
        return [1 + len(VOCABULARY) + byte % BUCKETS for byte in digest[:BUCKETS_A_WORD]]


@cache
def _open_clips_tokenizer() -> SimpleTokenizer:
    """Returns open_clip's tokenizer, which takes longer to make than a whole tiny CLIP."""
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def build_tiny_clip(pretrained: bool, tower: TinyTower = TINY) -> CLIP:
    """Returns a tiny CLIP in fp32, in evaluation mode, normalised with mean and std .5.

    Without `pretrained` the weights are drawn from torch's global generator.
    """
    vision = {**_VISION, "image_size": tower.image_size}
    model = CLIP(EMBED_DIM, vision, {**_TEXT, "vocab_size": TinyTokenizer().vocab_size})
    half = (0.5, 0.5, 0.5)
    set_model_preprocess_cfg(model, {"size": tower.image_size, "mean": half, "std": half})
    if pretrained:
        load_weights(model, tower.weights)
    else:
        _initialise(model, tower.grid)
    return model.eval()


def load_weights(model: nn.Module, path: Path, *, resize: bool = False) -> None:
    """Loads the weights that `tools.tiny_clip.pretrain` wrote, cast to the model's own dtype.

    With `resize`, weights of another image size fit as well: open_clip interpolates the positional
    embedding to the grid of `model`.
    """
    again = "run `python -m tools.tiny_clip.pretrain` with its command in the .json next to them"
    if not path.is_file():
        raise FileNotFoundError(f"no tiny CLIP weights at {path}; {again}")
    state = {name: value.float() for name, value in load_file(path).items()}
    if resize:
        resize_pos_embed(state, model)  # not possible in half precision
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != wanted:
        raise ValueError(
            f"the weights in {path} do not fit: they are of another tiny CLIP; {again}"
        )
    model.load_state_dict(state)


@torch.no_grad()
def _initialise(model: CLIP, grid: int) -> None:
    """Initialises positions as sine and cosine: from noise, position was learned far later."""
    sincos = get_2d_sincos_pos_embed(WIDTH, grid, cls_token=True)
    model.visual.positional_embedding.copy_(torch.from_numpy(sincos))
    model.visual.conv1.weight.mul_(2)
    nn.init.normal_(model.token_embedding.weight, std=0.1)
