"""Rendered scenes of the demonstration set: a marked object is static, another moves.

Eight classes: the colour of the marked object (four) times the direction of the mover (two). Four
static objects carry the four class colours in every scene, so it does not help to know which
colours there are; the mark is a white pad beneath one of them. The mover is of another colour and
crosses a canvas that wraps around, so no single frame says which way it goes, and a clip played
backwards is a clip of the other direction.

`Difficulty` makes other scenes by the same rule: more static objects, movers that go up or down,
squares that flicker, more frames.

Shapes: N scenes, T frames, C channels, H = W pixels, O static objects, V movers, S flickering
squares. Lengths are in units, see `stop_core.datasets.motion.shapes`.
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from stop_core.datasets.motion.shapes import (
    COLOURS,
    SHAPES,
    UNITS,
    any_angle,
    coverage,
    jittered_colours,
    paint,
    quiet_background,
    uniform,
)

TARGET_COLOURS = COLOURS[:4]
MOVER_COLOURS = COLOURS[4:]
DIRECTIONS = ("left", "right")
CLASSES = tuple(
    f"{colour}_shape_and_a_shape_moving_{direction}"
    for colour in TARGET_COLOURS
    for direction in DIRECTIONS
)
SCENE_FRAMES = 12

_SOLID = tuple(i for i, name in enumerate(SHAPES) if name != "ring")
_CELLS = 3  # a side of the grid of the static objects, at most one per cell
_GRAIN = 0.03
_PAD = 6.0  # radius of the white square beneath the marked object
_FLICKER = 4 / 0.85  # of a flickering square: an edge of 8 units, a patch of the tiny tower
# Units between two frames that are sampled; every second frame is.
_STEP = (2.0, 4.0)
_SAMPLED_EVERY = 2


@dataclass(frozen=True)
class Difficulty:
    """How much there is in a scene; as it is, that of the demonstration set."""

    statics: int = 4
    """Static objects, a multiple of the class colours: every colour is there as often."""
    movers: int = 1
    """The first goes left or right, as the class says; the others go up or down."""
    flickers: int = 0
    """Grey squares behind all else, as large as a patch, with a new brightness in every frame."""
    frames: int = SCENE_FRAMES
    """Number of frames of a video; every second one is meant to be sampled."""

    def __post_init__(self) -> None:
        for name, least in (("statics", 1), ("movers", 1), ("flickers", 0), ("frames", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.statics % len(TARGET_COLOURS) or self.statics > _CELLS**2:
            raise ValueError(
                f"statics must be a multiple of {len(TARGET_COLOURS)} and at most {_CELLS**2}, one "
                f"a cell of the canvas, got {self.statics}"
            )


@dataclass(frozen=True)
class Scenes:
    """The objects and paths of N scenes, independent of the size in pixels.

    labels_N: indices into `CLASSES`.
    background_seed: seeds texture and noise, the only random things left to `render`.
    static_*: the O static objects; object 0 is the marked one.
    mover_*: the V movers; `mover_centre_NVT2` gives (x, y) in every frame, not yet wrapped.
    flicker_*: the S squares that flicker; `flicker_grey_NST` is their brightness in every frame.
    """

    labels_N: Tensor
    background_seed: int
    static_shape_NO: Tensor
    static_centre_NO2: Tensor
    static_radius_NO: Tensor
    static_angle_NO: Tensor
    static_colour_NOC: Tensor
    pad_colour_NC: Tensor
    mover_shape_NV: Tensor
    mover_centre_NVT2: Tensor
    mover_radius_NV: Tensor
    mover_angle_NV: Tensor
    mover_colour_NVC: Tensor
    flicker_centre_NS2: Tensor
    flicker_grey_NST: Tensor
    difficulty: Difficulty = field(default_factory=Difficulty)


def draw_scenes(
    labels_N: Tensor, generator: Generator, difficulty: Difficulty | None = None
) -> Scenes:
    """Draws a scene for each label, an index into `CLASSES`."""
    difficulty = difficulty or Difficulty()
    count, statics, movers = len(labels_N), difficulty.statics, difficulty.movers
    wanted_N, direction_N = labels_N // len(DIRECTIONS), labels_N % len(DIRECTIONS)
    # A random order of the class colours, each as often, led by the wanted one.
    priority_NO = torch.rand(count, statics, generator=generator)
    priority_NO[torch.arange(count), wanted_N] = -1.0
    colours_NO = priority_NO.argsort(1) % len(TARGET_COLOURS)
    every, moving = count * statics, count * movers
    # The order of the draws is part of the demonstration set: what is new is drawn last.
    return Scenes(
        labels_N=labels_N,
        background_seed=int(torch.randint(2**31, (1,), generator=generator)),
        static_shape_NO=_solid_shapes(every, generator).view(count, statics),
        static_centre_NO2=_static_centres(count, statics, generator),
        static_radius_NO=uniform(every, 10 / 3, 13 / 3, generator).view(count, statics),
        static_angle_NO=any_angle(every, generator).view(count, statics),
        static_colour_NOC=jittered_colours(colours_NO.flatten(), generator).view(count, statics, 3),
        pad_colour_NC=uniform(count, 0.9, 1.0, generator)[:, None].expand(count, 3),
        mover_shape_NV=_solid_shapes(moving, generator).view(count, movers),
        mover_centre_NVT2=_paths(direction_N, difficulty, generator),
        mover_radius_NV=uniform(moving, 16 / 3, 20 / 3, generator).view(count, movers),
        mover_angle_NV=any_angle(moving, generator).view(count, movers),
        mover_colour_NVC=jittered_colours(
            torch.randint(len(TARGET_COLOURS), len(COLOURS), (moving,), generator=generator),
            generator,
        ).view(count, movers, 3),
        flicker_centre_NS2=UNITS * torch.rand(count, difficulty.flickers, 2, generator=generator),
        flicker_grey_NST=torch.rand(
            count, difficulty.flickers, difficulty.frames, generator=generator
        ),
        difficulty=difficulty,
    )


def render(scenes: Scenes, pixels: int) -> Tensor:
    """Frames of the scenes, uint8 [N, T, H, W, C]; the same scenes at whatever size in pixels."""
    generator = Generator().manual_seed(scenes.background_seed)
    background_NCHW = quiet_background(len(scenes.labels_N), pixels, generator)
    # Static grain: new grain in every frame is most of a file, and the codec drops it.
    grain_NCHW = _GRAIN * torch.randn(background_NCHW.shape, generator=generator)
    frames = scenes.difficulty.frames
    video = background_NCHW[:, None].expand(-1, frames, -1, -1, -1)
    for which in range(scenes.difficulty.flickers):
        grey_NTC = scenes.flicker_grey_NST[:, which, :, None].expand(-1, -1, 3)
        square_NHW = _square_coverage(scenes.flicker_centre_NS2[:, which], _FLICKER, pixels)
        video = paint(video, square_NHW[:, None].expand(-1, frames, -1, -1), grey_NTC)
    for which in reversed(range(scenes.difficulty.movers)):
        mover_NTHW = _mover_coverage(scenes, which, pixels)
        video = paint(video, mover_NTHW, scenes.mover_colour_NVC[:, None, which])
    statics_NCHW, gaps_NHW = _static_layer(scenes, pixels)
    video = video * gaps_NHW[:, None, None] + statics_NCHW[:, None]
    video = (video + grain_NCHW[:, None]).clamp_(0, 1).mul_(255).round_()
    return video.to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()


def _static_layer(scenes: Scenes, pixels: int) -> tuple[Tensor, Tensor]:
    """Returns all static objects on black, [N, C, H, W], and its transparency, [N, H, W]."""
    # Drawn once and laid over every frame: over the movers, so that the mark is never hidden.
    count = len(scenes.labels_N)
    layer_NCHW, gaps_NHW = torch.zeros(count, 3, pixels, pixels), torch.ones(count, pixels, pixels)
    parts = []
    for which in reversed(range(scenes.difficulty.statics)):
        shape, centre = scenes.static_shape_NO[:, which], scenes.static_centre_NO2[:, which]
        radius, angle = scenes.static_radius_NO[:, which], scenes.static_angle_NO[:, which]
        mask_NHW = coverage(shape, centre, radius, angle, pixels, wrap=True)
        parts.append((mask_NHW, scenes.static_colour_NOC[:, which]))
    pad_NHW = _square_coverage(scenes.static_centre_NO2[:, 0], _PAD, pixels)
    parts.insert(-1, (pad_NHW, scenes.pad_colour_NC))
    for mask_NHW, colour_NC in parts:
        layer_NCHW = paint(layer_NCHW, mask_NHW, colour_NC)
        gaps_NHW = gaps_NHW * (1 - mask_NHW)
    return layer_NCHW, gaps_NHW


def _mover_coverage(scenes: Scenes, which: int, pixels: int) -> Tensor:
    """Where a mover is in every frame, [N, T, H, W]."""
    centre_NT2 = scenes.mover_centre_NVT2[:, which]
    frames = centre_NT2.shape[1]
    shape, radius, angle = (
        part_NV[:, which].repeat_interleave(frames)
        for part_NV in (scenes.mover_shape_NV, scenes.mover_radius_NV, scenes.mover_angle_NV)
    )
    mask = coverage(shape, centre_NT2.flatten(0, 1), radius, angle, pixels, wrap=True)
    return mask.view(-1, frames, pixels, pixels)


def _square_coverage(centre_N2: Tensor, radius: float, pixels: int) -> Tensor:
    """Upright squares of a radius (half an edge is .85 of it), [N, H, W]."""
    ones = torch.ones(len(centre_N2))
    square = (ones * SHAPES.index("square")).long()
    return coverage(square, centre_N2, radius * ones, 0 * ones, pixels, wrap=True)


def _solid_shapes(count: int, generator: Generator) -> Tensor:
    return torch.tensor(_SOLID)[torch.randint(len(_SOLID), (count,), generator=generator)]


def _static_centres(count: int, statics: int, generator: Generator) -> Tensor:
    """Near the middles of different cells of the canvas, [N, O, 2]."""
    cell_NO = torch.rand(count, _CELLS**2, generator=generator).argsort(1)[:, :statics]
    grid_NO2 = torch.stack([cell_NO % _CELLS, cell_NO // _CELLS], dim=-1)
    jitter = uniform(count * statics * 2, -1.5, 1.5, generator).view(count, statics, 2)
    return (grid_NO2 + 0.5) * (UNITS / _CELLS) + jitter


def _paths(direction_N: Tensor, difficulty: Difficulty, generator: Generator) -> Tensor:
    """Straight paths, symmetric in time: the first mover's is horizontal, [N, V, T, 2]."""
    count, movers, frames = len(direction_N), difficulty.movers, difficulty.frames
    speed_NV = uniform(count * movers, *_STEP, generator).view(count, movers) / _SAMPLED_EVERY
    middle_NV2 = uniform(2 * count * movers, 0, UNITS, generator).view(count, movers, 2)
    vertical = torch.rand(count, movers - 1, generator=generator).round()
    sign_NV = 2 * torch.cat([direction_N[:, None], vertical], dim=1) - 1
    velocity_NV = speed_NV * sign_NV
    time_T = torch.arange(frames) - (frames - 1) / 2
    along_NVT = velocity_NV[..., None] * time_T
    path_NVT2 = torch.stack([along_NVT, torch.zeros_like(along_NVT)], dim=-1)
    path_NVT2[:, 1:] = path_NVT2[:, 1:].flip(-1)
    return middle_NV2[:, :, None] + path_NVT2
