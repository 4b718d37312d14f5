"""Pretraining is reproducible and records its provenance."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from stop_core.tiny.shipped import TINY, TINY_64
from tools.tiny_clip import pretrain
from tools.tiny_clip.pretrain import PretrainConfig, match_loss, rate_at, save_weights, train


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_same_config_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_HELD_OUT", 16)  # accuracy is not the point here
    written = []
    for name in ("a", "b"):
        config = PretrainConfig(
            seed=5, steps=3, batch_size=16, output=tmp_path / f"{name}.safetensors"
        )
        save_weights(train(config), config, cpu_seconds=1.0)
        written.append(config.output.read_bytes())
    assert written[0] == written[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.json",
        "a.safetensors",
        "b.json",
        "b.safetensors",
    ]
    provenance = json.loads((tmp_path / "a.json").read_text())
    assert provenance["command"] == (
        "python -m tools.tiny_clip.pretrain --seed 5 --steps 3 --batch-size 16"
    )
    assert str(tmp_path) not in json.dumps(provenance)


@pytest.mark.usefixtures("one_thread")
def test_pretraining_starts_from_the_named_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_HELD_OUT", 16)
    config = PretrainConfig(
        steps=1,
        batch_size=4,
        learning_rate=1e-9,  # nothing moves: what is written is what it began with
        tower="tiny-64",
        start_from="tiny",
        output=tmp_path / "a.safetensors",
    )
    provenance = save_weights(train(config), config, cpu_seconds=1.0)
    assert provenance["start_sha256"] == hashlib.sha256(TINY.weights.read_bytes()).hexdigest()
    assert provenance["command"].endswith(
        "--tower tiny-64 --start-from tiny --batch-size 4 --learning-rate 1e-09"
    )
    written, began = load_file(config.file), load_file(TINY.weights)
    assert written["visual.positional_embedding"].shape == (1 + 64, 96)
    for name in ("visual.conv1.weight", "token_embedding.weight", "visual.proj"):
        torch.testing.assert_close(written[name], began[name], rtol=0, atol=1e-4)


def test_weights_are_written_to_the_shipped_file_by_default() -> None:
    assert PretrainConfig().file == TINY.weights
    assert PretrainConfig(tower="tiny-64").file == TINY_64.weights
    assert PretrainConfig().file != PretrainConfig(tower="tiny-64").file


def test_with_one_positive_each_the_loss_is_infonce() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 6), torch.arange(6)
    infonce = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(match_loss(logits, torch.eye(6).bool()), infonce)


def test_the_loss_is_least_where_all_positives_score_alike() -> None:
    match = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    even = torch.where(match, 20.0, -20.0)
    uneven = even.clone()
    uneven[0, 1] += 5
    assert match_loss(even, match) == pytest.approx(math.log(2) * 2 / 3, abs=1e-4)
    assert match_loss(uneven, match) > match_loss(even, match)


def test_the_learning_rate_warms_up_and_ends_near_two_percent() -> None:
    config = PretrainConfig(steps=1000, warmup_steps=100)
    assert rate_at(0, config) == pytest.approx(config.learning_rate / 100)
    assert max(rate_at(step, config) for step in range(1000)) == rate_at(99, config)
    assert rate_at(999, config) == pytest.approx(0.02 * config.learning_rate, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "--steps"), ({"output": Path("weights.pt")}, "safetensors")],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**options)
