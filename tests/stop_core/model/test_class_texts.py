"""Laws of class texts: an ensemble is a mean, and only trained texts change."""

import pytest
import torch
import torch.nn.functional as F

from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.model.baselines import ZeroShot
from stop_core.model.class_texts import ClassTexts
from stop_core.model.tuned import Clip4Clip

SENTENCES = [["a red circle", "a photo of a red circle"], ["a bar", "a photo of a bar"]]


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return load_clip("tiny")


def test_one_sentence_per_class_gives_its_embedding_bit_for_bit(clip: FrozenClip) -> None:
    model = ZeroShot(clip)
    texts = [row[0] for row in SENTENCES]
    found = ClassTexts(model, [[text] for text in texts]).embeddings()
    assert torch.equal(found, clip.encode_text(texts))


def test_an_ensemble_is_the_mean_of_its_embeddings_on_the_unit_sphere(clip: FrozenClip) -> None:
    found = ClassTexts(ZeroShot(clip), SENTENCES).embeddings()
    wanted = torch.stack([F.normalize(clip.encode_text(row).mean(0), dim=0) for row in SENTENCES])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))
    assert (found - clip.encode_text([row[0] for row in SENTENCES])).abs().max() > 1e-3


def test_an_ensemble_of_equal_sentences_is_that_sentence(clip: FrozenClip) -> None:
    model = ZeroShot(clip)
    once = ClassTexts(model, [["a ring"], ["a bar"]]).embeddings()
    thrice = ClassTexts(model, [["a ring"] * 3, ["a bar"] * 3]).embeddings()
    torch.testing.assert_close(thrice, once)


def test_an_ensemble_does_not_depend_on_order_or_batch(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ZeroShot(clip)
    found = ClassTexts(model, SENTENCES).embeddings()
    monkeypatch.setattr("stop_core.model.video_model._TEXTS_AT_A_TIME", 3)
    turned = ClassTexts(model, [row[::-1] for row in SENTENCES]).embeddings()
    torch.testing.assert_close(turned, found)


def test_frozen_texts_are_embedded_once_and_need_no_gradient(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ZeroShot(clip)
    texts = ClassTexts(model, SENTENCES)
    first = texts.embeddings()
    monkeypatch.setattr(model, "encode_tokens", None)  # a second call would fail
    assert texts.embeddings() is first
    assert not first.requires_grad


@pytest.mark.parametrize("method", ["context", "both towers"])
def test_trained_texts_follow_every_step(method: str) -> None:
    model = Clip4Clip(load_clip("tiny")) if method == "both towers" else ZeroShot(load_clip("tiny"))
    if method == "context":
        model.learn_context(2)
    texts = ClassTexts(model, SENTENCES)
    before = texts.embeddings()
    assert before.requires_grad
    with torch.no_grad():
        assert not texts.embeddings().requires_grad
        for parameter in model.trainable().values():
            parameter += torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
    assert (texts.embeddings() - before).abs().max() > 1e-3


@pytest.mark.parametrize("sentences", [[], [[]], [["a"], ["b", "c"]]])
def test_different_numbers_of_sentences_per_class_are_refused(
    sentences: list[list[str]], clip: FrozenClip
) -> None:
    with pytest.raises(ValueError, match="equally many sentences"):
        ClassTexts(ZeroShot(clip), sentences)


@pytest.mark.parametrize(
    ("sentences", "context"),
    [
        ([["a video of walk."], ["A video  of Walk."]], 0),
        ([[f"{'a ' * 40}{word}"] for word in ("walk", "run")], 0),  # cut by the tower
        ([[f"{'a ' * 22}{word}"] for word in ("walk", "run")], 8),  # cut by the context
        ([["a bar", "walk"], ["a bar ", "Walk"]], 0),
    ],
)
def test_classes_with_the_same_tokens_are_refused_with_both_names(
    sentences: list[list[str]], context: int
) -> None:
    model = ZeroShot(load_clip("tiny"))
    if context:
        ClassTexts(model, sentences).refuse_twins(["one", "other"])
        model.learn_context(context)
    embedded = ClassTexts(model, sentences)
    assert torch.equal(*embedded.embeddings().detach())  # no video can be assigned to one of them
    with pytest.raises(ValueError, match="the classes 'one' and 'other' become the same text"):
        embedded.refuse_twins(["one", "other"])
    ClassTexts(model, SENTENCES).refuse_twins(["one", "other"])
