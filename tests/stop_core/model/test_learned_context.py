"""Laws of the learned context: it is read like words, and nothing else learns or changes."""

from collections.abc import Callable
from types import SimpleNamespace

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.model.baselines import ZeroShot
from stop_core.model.learned_context import LearnedContext, _end
from stop_core.tiny.tower import TinyTokenizer

WORDS = "a photo of"
TEXTS = ["a red circle", "the large blue bar at the left", "ring"]
CLOSE = {"rtol": 0, "atol": 1e-6}
VISION = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}


def custom_clip(pool: str) -> FrozenClip:
    """A CustomTextCLIP, whose text tower is a separate module."""
    tokenize = TinyTokenizer()
    text = {"context_length": 28, "vocab_size": tokenize.vocab_size, "width": 8, "heads": 2}
    pooling = {"pool_type": pool, "eos_id": tokenize.eot_token_id}
    torch.manual_seed(0)
    model = CustomTextCLIP(6, VISION, {**text, "layers": 2, **pooling})
    return FrozenClip("custom", model.requires_grad_(False).eval(), tokenize)


def plain_clip() -> FrozenClip:
    """A CLIP with open_clip's own vocabulary and text length."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    torch.manual_seed(0)
    model = CLIP(6, VISION, text).requires_grad_(False).eval()
    return FrozenClip("plain", model, open_clip.get_tokenizer("ViT-B-32"))


CLIPS: dict[str, Callable[[], FrozenClip]] = {
    "tiny": lambda: load_clip("tiny"),
    "plain": plain_clip,
    "custom, argmax": lambda: custom_clip("argmax"),
    "custom, eos": lambda: custom_clip("eos"),
}


def words_as_vectors(clip: FrozenClip) -> LearnedContext:
    """A context that has learned the embeddings of `WORDS`."""
    ids = clip.tokenize([WORDS])[0, 1:4]
    text = getattr(clip.model, "text", clip.model)
    context = LearnedContext(clip, len(ids))
    with torch.no_grad():
        context.vectors.copy_(text.token_embedding.weight[ids])
    return context


@torch.no_grad()
@pytest.mark.parametrize("kind", CLIPS)
def test_a_context_with_the_embeddings_of_words_is_read_as_these_words(kind: str) -> None:
    clip = CLIPS[kind]()
    found = words_as_vectors(clip)(clip.model, clip.tokenize(TEXTS))
    wanted = clip.encode_text([f"{WORDS} {text}" for text in TEXTS])
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert (found - clip.encode_text(TEXTS)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", CLIPS)
def test_a_text_too_long_for_its_context_keeps_its_first_words_and_its_end_token(kind: str) -> None:
    clip = CLIPS[kind]()
    most = clip.tokenize([""]).shape[1] - 2
    texts = [" ".join(["red", "blue"] * 40).split(" ", n)[:n] for n in range(1, most + 3)]
    texts = [" ".join(words) for words in texts]
    found = words_as_vectors(clip)(clip.model, clip.tokenize(texts))
    torch.testing.assert_close(found, clip.encode_text([f"{WORDS} {t}" for t in texts]), **CLOSE)


def test_every_vector_and_no_clip_tensor_gets_a_gradient() -> None:
    clip = load_clip("tiny")
    for count in (1, 25):  # the ends of the range
        assert LearnedContext(clip, count).vectors.shape == (count, 64)
    context = LearnedContext(clip, 4)
    embedded: Tensor = context(clip.model, clip.tokenize(TEXTS))
    embedded[:, 0].sum().backward()
    assert context.vectors.grad is not None
    assert context.vectors.grad.abs().amax(1).min() > 0
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())


def test_using_a_context_changes_no_bit_of_clip() -> None:
    clip = load_clip("tiny")
    before = clip.encode_text(TEXTS)
    with_context = ZeroShot(clip)
    with_context.learn_context(3)
    assert not torch.equal(with_context.encode_text(TEXTS), before)
    assert torch.equal(clip.encode_text(TEXTS), before)
    assert torch.equal(ZeroShot(clip).encode_text(TEXTS), before)
    with pytest.raises(IndexError):
        with_context.encode_tokens(torch.full((1, 28), 10_000))
    assert torch.equal(clip.encode_text(TEXTS), before)  # no hook is left behind by a failure


def test_a_checkpoint_has_the_context_and_the_prompts() -> None:
    model, other = ZeroShot(load_clip("tiny")), ZeroShot(load_clip("tiny"))
    assert model.prompt_state_dict() == {}
    model.learn_context(3)
    other.learn_context(3)
    state = model.prompt_state_dict()
    assert {name: value.shape for name, value in state.items()} == {"context.vectors": (3, 64)}
    other.load_prompt_state_dict(state)
    assert torch.equal(other.encode_text(TEXTS), model.encode_text(TEXTS))


@pytest.mark.parametrize("tokens", [0, 26, 100])
def test_a_context_longer_than_the_text_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"context_tokens must be from 1 to 25.*got {tokens}"):
        ZeroShot(load_clip("tiny")).learn_context(tokens)


def test_a_text_tower_that_cannot_have_a_context_is_refused_by_name() -> None:
    other = custom_clip("argmax")
    other.model.text = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"custom is not open_clip's own.*context_tokens to 0"):
        LearnedContext(other, 2)
    with pytest.raises(ValueError, match=r"custom pools its texts by 'last'"):
        LearnedContext(custom_clip("last"), 2)
    clip = load_clip("tiny")
    cut = FrozenClip("headless", clip.model, lambda texts: clip.tokenize(texts)[:, 1:])
    with pytest.raises(ValueError, match="headless have no start token"):
        LearnedContext(cut, 2)


def test_a_text_ends_at_its_largest_id_or_at_the_id_of_its_tower() -> None:
    ids = torch.tensor([[7, 3, 9, 2, 0], [7, 2, 9, 0, 0]])
    for text, ends in (
        (SimpleNamespace(pool_type="argmax"), [2, 2]),
        (SimpleNamespace(text_pool_type="argmax", pool_type="eos"), [2, 2]),
        (SimpleNamespace(pool_type="eos", eos_id=2), [3, 1]),
        (SimpleNamespace(text_pool_type="eos", text_eos_id=2, eos_id=9), [3, 1]),
    ):
        assert _end(text, ids).tolist() == ends
