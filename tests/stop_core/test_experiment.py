"""Laws of an experiment's identity and of its limits."""

from dataclasses import fields, replace

import pytest

from stop_core.config import StopConfig
from stop_core.experiment import ExperimentConfig, Method


def test_the_hash_changes_with_every_setting_and_not_with_the_seed() -> None:
    config = ExperimentConfig()
    assert replace(config, seed=5).hash == config.hash
    other = {"method": "vpt-deep", "tower": "ViT-B-16", "pretrained": "openai"}
    for f in fields(config):
        if f.name in ("seed", "stop"):
            continue
        changed = other.get(f.name) or getattr(config, f.name) + 1
        assert replace(config, **{f.name: changed}).hash != config.hash, f.name
    assert replace(config, stop=StopConfig(alpha=0.25)).hash != config.hash


def test_parameters_hold_every_field_by_its_own_name() -> None:
    parameters = ExperimentConfig().parameters()
    names = {f.name for kind in (StopConfig, ExperimentConfig) for f in fields(kind)}
    assert parameters.keys() == names - {"stop"}


@pytest.mark.parametrize("method", ["stop", "stop-static"])
def test_a_method_with_both_halves_turned_off_is_refused(method: Method) -> None:
    with pytest.raises(ValueError, match=r"n_s = 0 and eta = 0"):
        ExperimentConfig(method=method, stop=StopConfig(n_s=0, eta=0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "magic"),
        ("epochs", -1),
        ("batch_size", 0),
        ("static_prompts", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("clip_norm", 0.0),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        replace(ExperimentConfig(), **{name: value})
