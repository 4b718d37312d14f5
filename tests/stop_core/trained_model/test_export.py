"""An exported program equals the model, for any number of videos."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stop_core.clip.loading import FrozenClip
from stop_core.model.methods import build_method
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import Attention, StopConfig
from stop_core.trained_model.export import (
    export_program,
    largest_difference,
    parity_clips,
    save_onnx,
    save_program,
)
from stop_core.trained_model.files import Provenance, label_classes
from stop_core.trained_model.frames import Preprocessing
from stop_core.trained_model.model import TrainedModel, tower_facts

MakeClip = Callable[..., FrozenClip]


def _trained(clip: FrozenClip, method: str, attention: Attention = "frame") -> TrainedModel:
    stop = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4, attention=attention)
    config = ExperimentConfig(method=method, stop=stop, templates=("{}",), static_prompts=2)
    facts = tower_facts(clip)
    model = build_method(config, clip, 3)
    how = Preprocessing(4, facts.size, facts.mean, facts.std)
    classes = label_classes(("a", "b", "c"), config.templates)
    return TrainedModel(config, classes, how, Provenance(facts.fingerprint), model.eval())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "attention"),
    [("stop", "frame"), ("vpt-deep", "joint")]
    # Methods of other packages.
    + [(name, "frame") for name, own in METHODS.items() if not own.model.startswith("stop_core.")],
)
def test_a_loaded_program_equals_the_model(
    make_clip: MakeClip,
    stir: Callable[..., None],
    tmp_path: Path,
    method: str,
    attention: Attention,
) -> None:
    trained = _trained(make_clip(layers=1), method, attention)
    stir(trained.model)
    wanted = [trained.logits(frames) for frames in parity_clips(trained.preprocessing)]
    program, model = export_program(trained)
    ways = [save_program(program, tmp_path / "program.pt2")]
    if method == "stop":  # the only method with operations that ONNX does not have
        ways.append(save_onnx(program, tmp_path / "program.onnx"))
    for exported in ways:
        for frames, logits in zip(parity_clips(trained.preprocessing), wanted, strict=True):
            torch.testing.assert_close(exported(frames), logits, rtol=0, atol=1e-4)
        assert largest_difference(exported, model, trained.preprocessing) < 1e-3
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    assert {spec.arg.name for spec in program.graph_signature.input_specs} == used


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "attention"),
    [(name, "frame") for name in METHODS] + [("stop", "joint"), ("stop", "global")],
)
def test_any_method_is_a_program_for_any_number_of_videos(
    make_clip: MakeClip, stir: Callable[..., None], method: str, attention: Attention
) -> None:
    trained = _trained(make_clip(layers=1), method, attention)
    stir(trained.model)
    program, model = export_program(trained)
    assert largest_difference(program.module(), model, trained.preprocessing) < 1e-5


def test_a_program_that_differs_or_returns_nan_is_detected(make_clip: MakeClip) -> None:
    how = _trained(make_clip(), "zero-shot").preprocessing
    constant = torch.ones(1)
    assert largest_difference(lambda _: constant + 0.5, lambda _: constant, how) == 0.5
    assert largest_difference(lambda _: constant / 0 * 0, lambda _: constant, how) == float("inf")
