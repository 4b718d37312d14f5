"""The options of methods: their defaults, and the ends of their ranges."""

from dataclasses import asdict, fields
from typing import Any

import pytest

from stop_core.settings.method_options import MOST_FRAMES
from stop_core.settings.methods import METHODS

DGL = {"text_prompts": 8, "frame_prompts": 4, "prompt_space": "transformer", "prompt_frames": 12}
# Of the papers, or of the authors' code.
DEFAULTS: dict[str, dict[str, Any]] = {
    "st-adapter": {"adapter_ratio": 0.5, "adapter_kernel": "3x1x1"},
    "aim": {"adapter_ratio": 0.25, "adapter_scale": 0.5},
    "lora": {"lora_rank": 4, "lora_scale": 1.0, "lora_towers": "both"},
    "clip4clip-seqtransf": {"sequence_layers": 4, "tune_towers": True},
    "maple": {"text_prompts": 2, "prompt_depth": 9},
    "vop": {"text_prompts": 8, "frame_prompts": 8, "frame_prompt": "context"},
    "dgl": DGL,
    "stop-published": {
        **DGL,
        "pixel_prompts": "twice",
        "chosen_patches": 6,
        "pixel_groups": "comb",
        "change_prompts": True,
        "change_scale": "batch",
        "parallel_adapters": True,
        "prompt_dropout": 0.5,
    },
}
NUMBERS = [
    (METHODS[method].options, name)
    for method, values in DEFAULTS.items()
    for name, value in values.items()
    if type(value) in (int, float) and name != "prompt_dropout"
]


def test_the_defaults_are_those_of_the_papers() -> None:
    found = {method.name: asdict(method.options()) for method in METHODS.values()}
    assert {name: options for name, options in found.items() if options} == DEFAULTS
    assert MOST_FRAMES == 77


@pytest.mark.parametrize(("options", "name"), NUMBERS)
def test_a_number_is_positive_and_finite_or_refused_by_name(options: Any, name: str) -> None:
    least = {field.name: 1 if field.type is int else 1e-9 for field in fields(options)}[name]
    for value in (least, 1e6):
        assert getattr(options(**{name: value}), name) == value
    for value in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"^{name} must be positive and finite, got {value}"):
            options(**{name: value})


def test_dropout_is_at_least_0_and_below_1() -> None:
    options = METHODS["stop-published"].options
    for value in (0.0, 0.999):
        assert options(prompt_dropout=value).prompt_dropout == value
    for value in (-1e-9, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"^prompt_dropout must be .* got {value}"):
            options(prompt_dropout=value)
