"""Each number of the settings is taken up to the ends of its range and refused just beyond them."""

from dataclasses import fields, replace
from typing import Any

import pytest

from stop_core.settings.experiment import METHODS, ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.stop import StopConfig
from stop_core.settings.training import TrainingOptions

NAN, INFINITE = float("nan"), float("inf")
MOST = 4096

# Accepted and refused values: both ends of a range, and values far beyond.
STOP: dict[str, tuple[list[Any], list[Any]]] = {
    "n_s": ([0, 1, MOST], [-1, MOST + 1, 2.0, True, NAN]),
    "alpha": ([0.0, 1.0], [-1e-9, 1 + 1e-9, -7, 7, NAN]),
    "beta": ([0.0, 1e9], [-1e-9, -7, INFINITE, NAN]),
    "eta": ([0.0, 1e9], [-1e-9, -7, INFINITE, NAN]),
    "max_prompts": ([1, MOST], [0, -1, MOST + 1, 1.0, True]),
    "spatial_width": ([1, MOST], [0, -1, MOST + 1, 1.0, True]),
    "temporal_width": ([1, MOST], [0, -1, MOST + 1, 1.0, True]),
    "depth": ([None, 1, MOST], [0, -1, MOST + 1, 1.0, True]),
    "dropout": ([0.0, 0.999], [-1e-9, 1.0, 7, NAN]),
    "global_tokens": ([1, MOST], [0, -1, MOST + 1, 1.0, True]),
    "attention": (["joint", "frame", "global"], ["video", ""]),
    "normalize": (["per_frame", "running", "none"], ["per_video", ""]),
    "choose": (["learned", "random", "fixed", "lowest"], ["best", ""]),
    "selection": (["ste", "hard"], ["soft", ""]),
    "difference": (["prompted", "plain"], ["raw", ""]),
}
TRAINING: dict[str, tuple[list[Any], list[Any]]] = {
    "captions": (["one", "every"], ["all", ""]),
    "shuffle": (["global", "shards"], ["none", ""]),
    "steps": ([None, 1, 10**6], [0, -1, NAN, INFINITE]),
    "adam_beta1": ([0.0, 0.999], [-1e-9, 1.0, 7.0, NAN]),
    "adam_beta2": ([0.0, 0.9999], [-1e-9, 1.0, 7.0, NAN]),
    "adam_eps": ([1e-12, 1.0], [0.0, -1e-9, NAN, INFINITE]),
    "warmup": ([None, 0.0, 1.0], [-1e-9, 1 + 1e-9, NAN]),
    "randaugment": ([0, 1, 14], [-1, 15, NAN]),
    "label_smoothing": ([0.0, 0.999], [-1e-9, 1.0, 7.0, NAN]),
    "mixup": ([0.0, 1e-3, 7.0], [-1e-9, NAN, INFINITE]),
}
PROTOCOL: dict[str, tuple[list[Any], list[Any]]] = {
    "shots": ([None, 1, 10**6], [0, -1, NAN, INFINITE]),
    "classes": (["all", "base"], ["novel", ""]),
}
EXPERIMENT: dict[str, tuple[list[Any], list[Any]]] = {
    "static_prompts": ([1, MOST], [0, -1, MOST + 1]),
    "context_tokens": ([0, MOST], [-1, MOST + 1]),
    "frames": ([None, 1, 1000], [0, -1]),
    "epochs": ([0, 1, 10**6], [-1, -7, NAN, INFINITE]),
    "batch_size": ([1, 10**6], [0, -1, NAN]),
    "learning_rate": ([1e-9, 7.0], [0.0, -1e-9, NAN, INFINITE]),
    "spatial_rate": ([1e-9, 7.0], [0.0, -1e-9, NAN, INFINITE]),
    "weight_decay": ([0.0, 7.0], [-1e-9, NAN, INFINITE]),
    "warmup_steps": ([0, 10**6], [-1, NAN]),
    "clip_norm": ([1e-9, 7.0], [0.0, -1e-9, NAN, INFINITE]),
    "ema": ([0.0, 0.999], [-1e-9, 1.0, 7.0, NAN]),
    "seed": ([0, 10**9], [-1]),
    "precision": (["auto", "fp32", "bf16"], ["fp16", ""]),
    "method": (list(METHODS), ["Stop", ""]),
}
# Not limited, or limited together with others, which other tests check.
OTHERS = {
    "stop",
    "training",
    "protocol",
    "options",
    "shots_list",
    "base_seed",
    "base_classes",
    "full_training",
    "tower",
    "pretrained",
    "templates",
    "segment_jitter",
    "random_crop",
    "share",
    "decay_biases",
    "flip",
    "randaugment_magnitude",
}
WITHOUT_CONTEXT = ("linear-probe", "maple", "vop", "dgl", "stop-published")
CASES = [
    (kind, name, *values)
    for kind, ranges in (
        (StopConfig, STOP),
        (TrainingOptions, TRAINING),
        (ProtocolConfig, PROTOCOL),
        (ExperimentConfig, EXPERIMENT),
    )
    for name, values in ranges.items()
]


DEFAULTS: dict[str, Any] = {
    "n_s": 6, "alpha": 0.5, "beta": 1.0, "eta": 4.0, "max_prompts": 4, "spatial_width": 32,
    "temporal_width": 32, "depth": None, "share": False, "attention": "frame",
    "global_tokens": 4, "choose": "learned",
    "normalize": "per_frame", "selection": "ste", "difference": "prompted", "dropout": 0.0,
    "method": "stop", "tower": "tiny", "pretrained": None, "static_prompts": 8,
    "templates": ("default",), "context_tokens": 0, "frames": None, "segment_jitter": False,
    "random_crop": False, "epochs": 10, "batch_size": 32, "learning_rate": 2e-3,
    "spatial_rate": 0.5, "weight_decay": 0.01, "warmup_steps": 30, "clip_norm": 1.0, "ema": 0.0,
    "precision": "auto", "seed": 0, "captions": "one", "shuffle": "global", "steps": None,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_eps": 1e-8, "decay_biases": True,
    "warmup": None, "flip": False,
    "randaugment": 0, "randaugment_magnitude": 9, "label_smoothing": 0.0, "mixup": 0.0,
    "shots": None, "shots_list": (), "classes": "all", "base_seed": None, "base_classes": (),
    "full_training": False,
}  # fmt: skip


def test_the_defaults_are_those_that_published_runs_were_trained_with() -> None:
    assert ExperimentConfig().parameters() == DEFAULTS


def test_every_setting_has_a_range_here() -> None:
    kinds = StopConfig, TrainingOptions, ProtocolConfig, ExperimentConfig
    names = {field.name for kind in kinds for field in fields(kind)}
    ranges = STOP.keys() | TRAINING.keys() | PROTOCOL.keys() | EXPERIMENT.keys()
    assert names == ranges | OTHERS


@pytest.mark.parametrize(("kind", "name", "taken", "refused"), CASES, ids=[c[1] for c in CASES])
def test_a_setting_is_taken_within_its_range_and_refused_by_name_beyond(
    kind: type[Any], name: str, taken: list[Any], refused: list[Any]
) -> None:
    for value in taken:
        assert getattr(replace(kind(), **{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{name} ") as problem:
            replace(kind(), **{name: value})
        assert str(value) in str(problem.value)


@pytest.mark.parametrize("method", METHODS)
def test_stop_needs_one_of_its_halves_and_other_methods_neither(method: Any) -> None:
    for n_s, eta in ((0, 0.0), (1, 0.0), (0, 0.5)):
        experiment = {"method": method, "stop": StopConfig(n_s=n_s, eta=eta)}
        if n_s == eta == 0 and method in ("stop", "stop-static"):
            with pytest.raises(ValueError, match="n_s = 0 and eta = 0"):
                ExperimentConfig(**experiment)
        else:
            assert ExperimentConfig(**experiment).stop.n_s == n_s


def test_jitter_needs_frames_and_context_needs_a_method_that_reads_texts() -> None:
    assert ExperimentConfig(segment_jitter=True, frames=1).segment_jitter
    with pytest.raises(ValueError, match="segment_jitter needs frames"):
        ExperimentConfig(segment_jitter=True)
    for method in METHODS:
        for tokens in (0, 1):
            if tokens and method in WITHOUT_CONTEXT:
                with pytest.raises(ValueError, match="context_tokens has no use"):
                    ExperimentConfig(method=method, context_tokens=tokens)
            else:
                one = ExperimentConfig(method=method, context_tokens=tokens)
                assert one.is_trained == (method != "zero-shot" or tokens == 1)


@pytest.mark.parametrize(
    ("options", "other", "usual"),
    [(TrainingOptions(steps=7), "epochs", 10), (TrainingOptions(warmup=0.0), "warmup_steps", 30)],
)
def test_a_length_is_given_once(options: TrainingOptions, other: str, usual: int) -> None:
    assert ExperimentConfig(training=options, **{other: usual}).training == options
    with pytest.raises(ValueError, match=rf"{other} is 0.*set {other} to its default, {usual}"):
        ExperimentConfig(training=options, **{other: 0})


@pytest.mark.parametrize("magnitude", [-1, 0, 10, 30, 31])
def test_the_strength_of_randaugment_needs_operations(magnitude: int) -> None:
    with pytest.raises(ValueError, match="randaugment_magnitude"):
        TrainingOptions(randaugment_magnitude=magnitude)
    if 0 <= magnitude <= 30:
        assert TrainingOptions(randaugment=1, randaugment_magnitude=magnitude).randaugment == 1
        return
    with pytest.raises(ValueError, match="randaugment_magnitude must be 0 to 30"):
        TrainingOptions(randaugment=1, randaugment_magnitude=magnitude)
