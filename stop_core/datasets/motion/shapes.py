"""Antialiased coloured shapes on a canvas.

Positions and lengths are in units: the canvas is `UNITS` = 32 units wide whatever its size in
pixels, so one scene can be rendered at 32 or at 64 pixels. x grows to the right, y downwards.

Shapes: N scenes (or frames), H = W = `pixels`, C = 3 colour channels in [0, 1].
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

UNITS = 32.0
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")

_RGB = (
    (0.90, 0.12, 0.12),
    (0.12, 0.75, 0.20),
    (0.15, 0.25, 0.95),
    (0.95, 0.90, 0.15),
    (0.65, 0.15, 0.80),
    (0.15, 0.85, 0.90),
    (1.00, 0.55, 0.10),
    (0.97, 0.97, 0.97),
)


def uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """Returns `count` draws from [low, high), [N]."""
    return low + (high - low) * torch.rand(count, generator=generator)


def any_angle(count: int, generator: Generator) -> Tensor:
    """Returns `count` angles in radians from the whole circle, [N]."""
    return uniform(count, -math.pi, math.pi, generator)


def jittered_colours(index_N: Tensor, generator: Generator) -> Tensor:
    """Returns RGB of the colours `COLOURS[index]`, each channel varied by up to 7.5%, [N, C]."""
    noise_NC = torch.rand(len(index_N), 3, generator=generator) - 0.5
    return (torch.tensor(_RGB)[index_N] * (1 + 0.15 * noise_NC)).clamp(0, 1)


def coverage(
    shape_N: Tensor,
    centre_N2: Tensor,
    radius_N: Tensor,
    angle_N: Tensor,
    pixels: int,
    *,
    wrap: bool = False,
) -> Tensor:
    """Returns the covered share of every pixel by each shape, [N, H, W] in [0, 1].

    `shape_N` indexes `SHAPES`; centres (x, y) and radii are in units, angles in radians. With
    `wrap`, a shape that leaves the canvas on one side re-enters on the other.
    """
    _check_pixels(pixels)
    scale = pixels / UNITS
    along = (torch.arange(pixels) + 0.5) / scale
    dx_NHW = along[None, None, :] - centre_N2[:, 0, None, None]
    dy_NHW = along[None, :, None] - centre_N2[:, 1, None, None]
    if wrap:
        dx_NHW = (dx_NHW + UNITS / 2) % UNITS - UNITS / 2
        dy_NHW = (dy_NHW + UNITS / 2) % UNITS - UNITS / 2
    cos_N11, sin_N11 = angle_N.cos()[:, None, None], angle_N.sin()[:, None, None]
    u_NHW = dx_NHW * cos_N11 + dy_NHW * sin_N11
    v_NHW = dy_NHW * cos_N11 - dx_NHW * sin_N11
    distance_NHW = torch.empty(len(shape_N), pixels, pixels)
    for kind, distance in enumerate(_DISTANCES):
        rows = (shape_N == kind).nonzero()[:, 0]
        if len(rows):
            distance_NHW[rows] = distance(u_NHW[rows], v_NHW[rows], radius_N[rows, None, None])
    # One pixel wide ramp around the outline, in pixels of this canvas: that is the antialiasing.
    return (0.5 - distance_NHW * scale).clamp(0, 1)


def paint(image: Tensor, coverage_HW: Tensor, colour_C: Tensor) -> Tensor:
    """Returns `image` [..., C, H, W] painted with `colour_C` [..., C] where `coverage_HW` is 1."""
    mask = coverage_HW.unsqueeze(-3)
    return torch.lerp(image, colour_C[..., None, None].expand_as(image), mask.expand_as(image))


def quiet_background(count: int, pixels: int, generator: Generator) -> Tensor:
    """Dim, nearly grey canvases with a faint texture at two scales, [N, C, H, W]."""
    # Quiet on purpose: over loud backgrounds a tower of this size never learned position.
    _check_pixels(pixels)
    grey = 0.12 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    tint = 0.06 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    coarse = 0.04 * torch.randn(count, 3, 6, 6, generator=generator)
    fine = 0.05 * torch.randn(count, 1, 16, 16, generator=generator)
    texture = sum(
        F.interpolate(grid, size=(pixels, pixels), mode="bilinear") for grid in (coarse, fine)
    )
    return (grey + tint + texture).clamp(0, 1)


def _check_pixels(pixels: int) -> None:
    if pixels < 8:
        raise ValueError(f"a canvas needs at least 8 pixels a side, got {pixels}; use 32 or 64")


def _box(u: Tensor, v: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _triangle(u: Tensor, v: Tensor, R: Tensor) -> Tensor:
    slopes = torch.maximum(0.866 * u - 0.5 * v, -0.866 * u - 0.5 * v) - 0.5 * R
    return torch.maximum(v - 0.6 * R, slopes)


# Signed distances to the outline (negative inside), in the shape's own axes u and v, R its radius;
# in the order of `SHAPES`.
_DISTANCES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda u, v, R: torch.hypot(u, v) - R,
    lambda u, v, R: torch.maximum(u.abs(), v.abs()) - 0.85 * R,
    _triangle,
    lambda u, v, R: torch.minimum(_box(u, v, R, 0.33 * R), _box(u, v, 0.33 * R, R)),
    lambda u, v, R: (torch.hypot(u, v) - 0.75 * R).abs() - 0.25 * R,
    lambda u, v, R: _box(u, v, 1.15 * R, 0.33 * R),
)
