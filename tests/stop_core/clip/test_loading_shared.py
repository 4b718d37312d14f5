"""A training with a shared CLIP has the same result as in a separate process."""

import pickle

import pytest
import torch

from stop_core.clip import loading
from stop_core.clip.loading import ClipCache, load_clip
from stop_core.model.methods import build_method
from stop_core.runtime.devices import seed_weights
from stop_core.settings.experiment import ExperimentConfig


def _weights(load, seed: int) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    seed_weights(seed)
    clip = load("tiny", None)
    return build_method(ExperimentConfig(), clip, classes=2).prompt_state_dict()


def test_initial_prompts_do_not_depend_on_earlier_models() -> None:
    keeper = ClipCache()
    for seed in (3, 3, 4, 3):
        kept, own = _weights(keeper.load, seed), _weights(load_clip, seed)
        assert all(torch.equal(kept[name], tensor) for name, tensor in own.items())


def test_a_clip_is_loaded_once_per_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    monkeypatch.setattr(loading, "load_clip", lambda *name: loads.append(name) or load_clip(*name))
    keeper = ClipCache()
    torch.manual_seed(0)
    first = keeper.load("tiny", None)
    torch.manual_seed(0)
    assert keeper.load("tiny", None) is first
    assert len(loads) == 1
    torch.manual_seed(1)
    keeper.load("tiny", None)
    assert len(loads) == 2


def test_texts_are_embedded_once_and_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kept, own = ClipCache().load("tiny", None), load_clip("tiny")
    texts = ["a red shape", "a shape moving left"]
    first = kept.encode_text(texts)
    assert torch.equal(first, own.encode_text(texts))
    monkeypatch.setattr(kept.model, "encode_text", None)  # a second call would fail
    assert torch.equal(kept.encode_text(texts), first)


def test_a_pickled_clip_cache_is_empty() -> None:
    keeper = ClipCache()
    keeper.load("tiny", None)
    assert len(pickle.dumps(keeper)) < 200
