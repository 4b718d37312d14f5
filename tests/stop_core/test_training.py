"""Laws of training: every clip once an epoch, one result for one seed, frozen means frozen."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stop_core.clip import FrozenClip, load_clip
from stop_core.config import StopConfig
from stop_core.experiment import METHODS, ExperimentConfig, Method
from stop_core.methods import build_method
from stop_core.stop_model import StopModel
from stop_core.text import ClassTexts
from stop_core.training import (
    DivergedError,
    Step,
    Trainer,
    epoch_batches,
    learning_rate_at,
    predict,
    seed_weights,
)
from stop_core.video_model import VideoModel

SMALL = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4)
CONFIG = ExperimentConfig(stop=SMALL, epochs=2, batch_size=4, warmup_steps=2)
TRAINED = [method for method in METHODS if method != "zero-shot"]


class Clips:
    """Ten clips in memory, read as a cache is."""

    def __init__(self, count: int = 10) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (count, 3, 32, 32, 3)
        self.frames = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        self.labels = torch.arange(count) % 3
        self.video_ids = [f"clip {number}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.frames[list(indices)]


def _train(
    config: ExperimentConfig, clip: FrozenClip | None = None
) -> tuple[VideoModel, ClassTexts, list[Step]]:
    seed_weights(config.seed)
    model = build_method(config, clip or load_clip("tiny"), 3)
    texts = ClassTexts(model, [["a red shape"], ["a green shape"], ["a blue shape"]])
    trainer = Trainer(model, config, Clips(), texts)
    steps: list[Step] = []
    for epoch in range(config.epochs):
        trainer.train_epoch(epoch, steps.append)
    return model, texts, steps


@pytest.mark.parametrize(("clips", "batch"), [(10, 4), (8, 4), (1, 8), (9, 1)])
def test_an_epoch_holds_every_clip_once(clips: int, batch: int) -> None:
    batches = epoch_batches(clips, replace(CONFIG, batch_size=batch), epoch=0)
    assert sorted(clip for one in batches for clip in one) == list(range(clips))
    assert len(batches) == math.ceil(clips / batch)


def test_the_order_follows_seed_and_epoch_alone() -> None:
    order = epoch_batches(50, CONFIG, 1)
    assert epoch_batches(50, CONFIG, 1) == order
    assert epoch_batches(50, CONFIG, 2) != order
    assert epoch_batches(50, replace(CONFIG, seed=1), 1) != order


def test_the_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(CONFIG, warmup_steps=5, learning_rate=1.0)
    rates = [learning_rate_at(step, 50, config) for step in range(50)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[0] == pytest.approx(0.2)
    assert learning_rate_at(50, 50, config) == pytest.approx(0)


@pytest.mark.parametrize("method", TRAINED)
def test_one_seed_gives_one_result_bit_for_bit(method: Method) -> None:
    config = replace(CONFIG, method=method)
    first, second = (_train(config)[0].prompt_state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = _train(replace(config, seed=1))[0].prompt_state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", TRAINED)
def test_training_moves_every_prompt_and_no_bit_of_clip(method: Method) -> None:
    config, clip = replace(CONFIG, method=method), load_clip("tiny")
    seed_weights(config.seed)
    before = build_method(config, load_clip("tiny"), 3).prompt_state_dict()
    model, _, _ = _train(config, clip)
    after = model.prompt_state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    # clip4clip trains a copy; every other method runs on the very tensors that it is given.
    assert (model.clip is clip.model) == (method != "clip4clip")
    for name, tensor in load_clip("tiny").model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("method", ["stop", "zero-shot", "vpt-deep", "clip4clip"])
def test_context_tokens_are_trained_with_every_method_that_reads_texts(method: Method) -> None:
    config, clip = replace(CONFIG, method=method, context_tokens=3), load_clip("tiny")
    seed_weights(config.seed)
    before = build_method(config, load_clip("tiny"), 3).prompt_state_dict()
    model, texts, _ = _train(config, clip)
    after = model.prompt_state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    for name, tensor in load_clip("tiny").model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], tensor), name
    # What is evaluated are the texts as they are now, not as they were when training began.
    other = build_method(config, load_clip("tiny"), 3)
    other.load_prompt_state_dict(after)
    same = [["a red shape"], ["a green shape"], ["a blue shape"]]
    again = predict(other, Clips(), ClassTexts(other, same))
    assert torch.equal(predict(model, Clips(), texts), again)


def test_without_context_tokens_training_is_what_it_was() -> None:
    model, _, _ = _train(CONFIG)
    assert not model.trains_text
    seed_weights(CONFIG.seed)
    plain = StopModel(load_clip("tiny"), SMALL)
    embedded = plain.encode_text(["a red shape", "a green shape", "a blue shape"])
    trainer = Trainer(plain, CONFIG, Clips(), embedded)
    for epoch in range(CONFIG.epochs):
        trainer.train_epoch(epoch, lambda step: None)
    ours, theirs = model.prompt_state_dict(), plain.prompt_state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_texts_that_are_trained_are_refused_as_embeddings_computed_once() -> None:
    config = replace(CONFIG, context_tokens=2)
    model = build_method(config, load_clip("tiny"), 3)
    with pytest.raises(ValueError, match="trains its texts"):
        Trainer(model, config, Clips(), model.encode_text(["a", "b", "c"]).detach())


def test_training_lowers_the_loss_on_what_it_sees() -> None:
    _, _, steps = _train(replace(CONFIG, epochs=30))
    first, last = ([s.loss for s in part] for part in (steps[:3], steps[-3:]))
    assert sum(last) < 0.7 * sum(first)


def test_predictions_do_not_depend_on_the_size_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts, _ = _train(CONFIG)
    whole = predict(model, Clips(), texts)
    monkeypatch.setattr("stop_core.training.EVALUATION_BATCH", 3)
    torch.testing.assert_close(predict(model, Clips(), texts), whole, rtol=1e-5, atol=1e-4)


def test_a_loss_that_is_no_number_ends_the_training_and_names_its_clips() -> None:
    seed_weights(0)
    model = build_method(CONFIG, load_clip("tiny"), 3)
    texts = model.encode_text(["a", "b", "c"]) * float("nan")
    with pytest.raises(DivergedError, match=r"step 0.*clip \d"):
        Trainer(model, CONFIG, Clips(), texts).train_epoch(0, lambda step: None)
