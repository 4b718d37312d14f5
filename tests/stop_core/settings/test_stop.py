"""Settings for which the equations of the paper have no meaning are refused."""

import dataclasses
from typing import Any

import pytest

from stop_core import StopConfig

NAN, INFINITE = float("nan"), float("inf")

OUT_OF_RANGE: dict[str, list[Any]] = {
    "n_s": [-1, NAN, INFINITE],
    "alpha": [-0.01, 1.01, NAN, INFINITE],
    "beta": [-0.5, NAN, INFINITE],
    "eta": [-0.5, NAN, INFINITE],
    "max_prompts": [0, -1, NAN],
    "spatial_width": [0, -8, NAN],
    "temporal_width": [0, -8, NAN],
    "depth": [0, -1, NAN],
    "attention": ["Joint", "", "video"],
    "normalize": ["per_video", ""],
    "selection": ["soft", ""],
    "difference": ["raw", ""],
    "dropout": [-0.1, 1.0, 1.5, NAN],
}
COUNTS = ("n_s", "max_prompts", "spatial_width", "temporal_width", "depth")


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, bad in OUT_OF_RANGE.items() for value in bad]
)
def test_field_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must") as refused:
        StopConfig(**{field: value})
    assert str(value) in str(refused.value)


@pytest.mark.parametrize("field", COUNTS)
def test_fractional_count_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must"):
        StopConfig(**{field: 2.5})


@pytest.mark.parametrize(
    "edge",
    [
        {"n_s": 0},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"beta": 0.0},
        {"eta": 0.0},
        {"max_prompts": 1},
        {"spatial_width": 1, "temporal_width": 1},
        {"depth": 1},
        {"dropout": 0.0},
    ],
)
def test_limits_of_each_range_are_accepted(edge: dict[str, Any]) -> None:
    config = StopConfig(**edge)
    assert {name: getattr(config, name) for name in edge} == edge


def test_config_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        StopConfig().n_s = -1  # type: ignore[misc]
