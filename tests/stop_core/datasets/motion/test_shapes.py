"""Shapes keep their size and place whatever the canvas."""

import math

import pytest
import torch
from torch import Generator

from stop_core.datasets.motion.shapes import SHAPES, coverage, paint, quiet_background

KINDS = torch.arange(len(SHAPES))
CENTRES = torch.tensor([[9.0, 20.0]]).expand(len(SHAPES), 2)
RADII = torch.full((len(SHAPES),), 6.0)
ANGLES = torch.linspace(0, 1, len(SHAPES))


def test_a_shape_at_64_pixels_is_the_same_shape_as_at_32() -> None:
    small = coverage(KINDS, CENTRES, RADII, ANGLES, 32)
    large = coverage(KINDS, CENTRES, RADII, ANGLES, 64)
    halved = torch.nn.functional.avg_pool2d(large[:, None], 2)[:, 0]
    assert (small - halved).abs().max() < 0.35  # on an outline
    assert (small - halved).abs().mean() < 0.005


def test_a_circle_covers_its_area() -> None:
    mask = coverage(KINDS[:1], CENTRES[:1], RADII[:1], ANGLES[:1], 64)
    assert mask.sum() / 4 == pytest.approx(math.pi * 36, rel=0.01)


def test_a_wrapping_canvas_has_the_period_of_its_width() -> None:
    shifted = coverage(KINDS, CENTRES + 32, RADII, ANGLES, 32, wrap=True)
    torch.testing.assert_close(shifted, coverage(KINDS, CENTRES, RADII, ANGLES, 32, wrap=True))


def test_half_of_a_shape_on_the_edge_is_lost_unless_the_canvas_wraps() -> None:
    edge = torch.tensor([[0.0, 16.0]])
    cut = coverage(KINDS[:1], edge, RADII[:1], ANGLES[:1], 32).sum()
    whole = coverage(KINDS[:1], edge, RADII[:1], ANGLES[:1], 32, wrap=True).sum()
    assert cut / whole == pytest.approx(0.5, abs=0.01)


def test_paint_replaces_exactly_what_is_covered() -> None:
    image = quiet_background(1, 32, Generator().manual_seed(0))
    mask = torch.zeros(1, 32, 32)
    mask[:, :16] = 1
    red = torch.tensor([[1.0, 0.0, 0.0]])
    painted = paint(image, mask, red)
    assert torch.equal(painted[..., 16:, :], image[..., 16:, :])
    assert (painted[..., :16, :] == red[..., None, None]).all()


def test_a_canvas_of_no_use_is_refused() -> None:
    with pytest.raises(ValueError, match="got 4"):
        coverage(KINDS, CENTRES, RADII, ANGLES, 4)
