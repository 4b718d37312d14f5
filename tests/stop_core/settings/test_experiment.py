"""Laws of the hash of an experiment and of the ranges of its settings."""

import hashlib
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stop_core.settings.class_templates import TEMPLATES
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.stop import StopConfig
from stop_core.settings.training import TrainingOptions


def test_hash_depends_on_every_setting_except_the_seed() -> None:
    config = ExperimentConfig()
    assert replace(config, seed=5).hash == config.hash
    other = {"method": "vpt-deep", "tower": "ViT-B-16", "pretrained": "openai"}
    other |= {"templates": ("a photo of {}.",), "ema": 0.5, "precision": "bf16", "frames": 4}
    other |= {"random_crop": True}
    for f in fields(config):
        if f.name in ("seed", "stop", "training", "protocol", "segment_jitter", "options"):
            continue
        changed = other.get(f.name) or getattr(config, f.name) + 1
        assert replace(config, **{f.name: changed}).hash != config.hash, f.name
    assert replace(config, stop=StopConfig(alpha=0.25)).hash != config.hash
    for name, value in (("flip", True), ("mixup", 0.2), ("steps", 9), ("adam_eps", 1e-6)):
        assert replace(config, training=TrainingOptions(**{name: value})).hash != config.hash
    for protocol in (ProtocolConfig(shots=2), ProtocolConfig(full_training=True)):
        assert replace(config, protocol=protocol).hash != config.hash
    few = replace(config, frames=4)
    assert replace(few, segment_jitter=True).hash != few.hash


def test_settings_that_were_added_later_keep_the_hash_of_earlier_trainings() -> None:
    values = asdict(ExperimentConfig())
    for name in ("frames", "segment_jitter", "random_crop", "options", "training", "protocol"):
        del values[name]
    for name in ("global_tokens", "choose"):
        del values["stop"][name]
    values["precision"] = "fp32"  # the default of that time, and that of a CPU now
    text = json.dumps(values, sort_keys=True)
    assert ExperimentConfig().hash == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("examples", "epoch"), [(1, 1), (31, 1), (32, 1), (33, 2), (180_000, 5625)]
)
def test_a_training_has_its_steps_or_else_those_of_its_epochs(examples: int, epoch: int) -> None:
    config = ExperimentConfig(epochs=3, batch_size=32)
    assert config.lengths(examples) == (epoch, 3 * epoch)
    options = TrainingOptions(steps=7)
    assert ExperimentConfig(training=options).lengths(examples) == (epoch, 7)


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a copy of the file of templates that a test can edit."""
    copy = tmp_path / "templates.yaml"
    copy.write_text(TEMPLATES.read_text())
    monkeypatch.setattr("stop_core.settings.class_templates.TEMPLATES", copy)
    return copy


def test_hash_depends_on_the_sentences_and_not_on_their_source(templates: Path) -> None:
    named = ExperimentConfig()
    before = {name: named.for_dataset(name).hash for name in ("hmdb51", "ucf101", "kinetics")}
    given = replace(named, templates=("a video of a person doing {}.",))
    assert given.for_dataset("hmdb51").hash == given.hash == before["hmdb51"]
    assert named.for_dataset("hmdb51").for_dataset("ucf101") == named.for_dataset("hmdb51")
    ensemble = replace(named, templates=("ensemble",)).for_dataset("hmdb51")
    assert ensemble.hash != before["hmdb51"]
    # An edit changes the experiments on that dataset, and on no other.
    edited = yaml.safe_load(templates.read_text())
    edited["kinetics"]["default"] = ["a film of {}."]
    templates.write_text("# edited\n" + yaml.safe_dump(edited))
    after = {name: named.for_dataset(name).hash for name in before}
    assert {name for name in before if after[name] != before[name]} == {"kinetics"}


def test_only_zero_shot_without_context_tokens_trains_nothing() -> None:
    untrained = {method for method in METHODS if not ExperimentConfig(method=method).is_trained}
    assert untrained == {"zero-shot"}
    assert ExperimentConfig(method="zero-shot", context_tokens=1).is_trained


def test_context_tokens_are_refused_for_a_method_without_text() -> None:
    with pytest.raises(ValueError, match=r"context_tokens.*linear-probe"):
        ExperimentConfig(method="linear-probe", context_tokens=4)


def test_parameters_contain_every_field_by_name() -> None:
    parameters = ExperimentConfig().parameters()
    kinds = StopConfig, TrainingOptions, ProtocolConfig, ExperimentConfig
    names = {f.name for kind in kinds for f in fields(kind)}
    assert parameters.keys() == names - {"stop", "training", "protocol", "options"}


@pytest.mark.parametrize("method", ["stop", "stop-static"])
def test_method_with_both_halves_turned_off_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"n_s = 0 and eta = 0"):
        ExperimentConfig(method=method, stop=StopConfig(n_s=0, eta=0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "magic"),
        ("epochs", -1),
        ("batch_size", 0),
        ("templates", ()),
        ("templates", ("a {}", "")),
        ("templates", ("a {}", "ensemble")),
        ("context_tokens", -1),
        ("static_prompts", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("clip_norm", 0.0),
        ("frames", 0),
        ("segment_jitter", True),
        ("seed", -1),
    ],
)
def test_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        replace(ExperimentConfig(), **{name: value})


def test_a_list_of_templates_from_yaml_becomes_a_tuple() -> None:
    config = ExperimentConfig.from_parameters({"templates": ["a {}.", "the {}."], "epochs": 3})
    assert config.templates == ("a {}.", "the {}.")
    assert ExperimentConfig.from_parameters({"epochs": 3}).templates == ExperimentConfig().templates


@pytest.mark.parametrize("values", [None, 3, [], ["epochs"], {1: 2}, {"epochs": 3, None: 2}])
def test_parameters_that_are_no_names_with_values_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="settings must be `name: value` lines"):
        ExperimentConfig.from_parameters(values)
