"""Rendered scenes of the demonstration set: something marked stands still, something else moves.

Eight classes: the colour of the marked object (four) times the direction of the mover (two). Four
static objects carry the four class colours in every scene, so it does not help to know which
colours there are; the mark is a white pad beneath one of them. The mover is of another colour and
crosses a canvas that wraps around, so no single frame says which way it goes, and a clip played
backwards is a clip of the other direction.

Shapes: N scenes, T frames, C channels, H = W pixels, O = 4 static objects. Lengths are in units,
see `stop_core.tiny.shapes`.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stop_core.tiny.shapes import (
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
FRAMES = 12

_SOLID = tuple(i for i, name in enumerate(SHAPES) if name != "ring")
_OBJECTS = 4
_GRAIN = 0.03
# Units between two frames that are sampled; every second frame is.
_STEP = (2.0, 4.0)
_SAMPLED_EVERY = 2


@dataclass(frozen=True)
class Scenes:
    """What happens in N scenes, apart from pixels.

    labels_N: indices into `CLASSES`.
    background_seed: seeds texture and noise, the only random things left to `render`.
    static_*: the O static objects; object 0 is the marked one.
    mover_*: the moving object; `mover_centre_NT2` gives (x, y) in every frame, not yet wrapped.
    """

    labels_N: Tensor
    background_seed: int
    static_shape_NO: Tensor
    static_centre_NO2: Tensor
    static_radius_NO: Tensor
    static_angle_NO: Tensor
    static_colour_NOC: Tensor
    pad_colour_NC: Tensor
    mover_shape_N: Tensor
    mover_centre_NT2: Tensor
    mover_radius_N: Tensor
    mover_angle_N: Tensor
    mover_colour_NC: Tensor


def class_text(name: str) -> str:
    """What the class called `name` is to CLIP, such as "a video of a red shape and ..."."""
    return "a video of a " + name.replace("_", " ")


def draw_scenes(labels_N: Tensor, generator: Generator) -> Scenes:
    """Draws a scene for each label, an index into `CLASSES`."""
    count = len(labels_N)
    wanted_N, direction_N = labels_N // len(DIRECTIONS), labels_N % len(DIRECTIONS)
    colours_NO = _colours_led_by(wanted_N, generator)
    every = count * _OBJECTS
    return Scenes(
        labels_N=labels_N,
        background_seed=int(torch.randint(2**31, (1,), generator=generator)),
        static_shape_NO=_solid_shapes(every, generator).view(count, _OBJECTS),
        static_centre_NO2=_static_centres(count, generator),
        static_radius_NO=uniform(every, 10 / 3, 13 / 3, generator).view(count, _OBJECTS),
        static_angle_NO=any_angle(every, generator).view(count, _OBJECTS),
        static_colour_NOC=jittered_colours(colours_NO.flatten(), generator).view(
            count, _OBJECTS, 3
        ),
        pad_colour_NC=uniform(count, 0.9, 1.0, generator)[:, None].expand(count, 3),
        mover_shape_N=_solid_shapes(count, generator),
        mover_centre_NT2=_paths(direction_N, generator),
        mover_radius_N=uniform(count, 16 / 3, 20 / 3, generator),
        mover_angle_N=any_angle(count, generator),
        mover_colour_NC=jittered_colours(
            torch.randint(len(TARGET_COLOURS), len(COLOURS), (count,), generator=generator),
            generator,
        ),
    )


def render(scenes: Scenes, pixels: int) -> Tensor:
    """Frames of the scenes, uint8 [N, T, H, W, C]; the same scenes at whatever size in pixels."""
    generator = Generator().manual_seed(scenes.background_seed)
    background_NCHW = quiet_background(len(scenes.labels_N), pixels, generator)
    # Grain that stands still: new grain in every frame is most of a file, and the codec drops it.
    grain_NCHW = _GRAIN * torch.randn(background_NCHW.shape, generator=generator)
    mover_NTHW = _mover_coverage(scenes, pixels)
    video = background_NCHW[:, None].expand(-1, mover_NTHW.shape[1], -1, -1, -1)
    video = paint(video, mover_NTHW, scenes.mover_colour_NC[:, None])
    statics_NCHW, gaps_NHW = _static_layer(scenes, pixels)
    video = video * gaps_NHW[:, None, None] + statics_NCHW[:, None]
    video = (video + grain_NCHW[:, None]).clamp_(0, 1).mul_(255).round_()
    return video.to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()


def _static_layer(scenes: Scenes, pixels: int) -> tuple[Tensor, Tensor]:
    """All that stands still, on black, [N, C, H, W], and what shows through it, [N, H, W].

    Drawn once and laid over every frame: over the mover, so that the mark is never hidden.
    """
    count = len(scenes.labels_N)
    layer_NCHW, gaps_NHW = torch.zeros(count, 3, pixels, pixels), torch.ones(count, pixels, pixels)
    parts = [
        (_static_coverage(scenes, which, pixels), scenes.static_colour_NOC[:, which])
        for which in reversed(range(_OBJECTS))
    ]
    parts.insert(-1, (_pad_coverage(scenes, pixels), scenes.pad_colour_NC))
    for mask_NHW, colour_NC in parts:
        layer_NCHW = paint(layer_NCHW, mask_NHW, colour_NC)
        gaps_NHW = gaps_NHW * (1 - mask_NHW)
    return layer_NCHW, gaps_NHW


def _mover_coverage(scenes: Scenes, pixels: int) -> Tensor:
    """Where the mover is in every frame, [N, T, H, W]."""
    frames = scenes.mover_centre_NT2.shape[1]
    mask = coverage(
        scenes.mover_shape_N.repeat_interleave(frames),
        scenes.mover_centre_NT2.flatten(0, 1),
        scenes.mover_radius_N.repeat_interleave(frames),
        scenes.mover_angle_N.repeat_interleave(frames),
        pixels,
        wrap=True,
    )
    return mask.view(-1, frames, pixels, pixels)


def _static_coverage(scenes: Scenes, which: int, pixels: int) -> Tensor:
    return coverage(
        scenes.static_shape_NO[:, which],
        scenes.static_centre_NO2[:, which],
        scenes.static_radius_NO[:, which],
        scenes.static_angle_NO[:, which],
        pixels,
        wrap=True,
    )


def _pad_coverage(scenes: Scenes, pixels: int) -> Tensor:
    """The white square beneath the marked object, [N, H, W]."""
    ones = torch.ones(len(scenes.labels_N))
    square = (ones * SHAPES.index("square")).long()
    centre_N2 = scenes.static_centre_NO2[:, 0]
    return coverage(square, centre_N2, 6 * ones, 0 * ones, pixels, wrap=True)


def _solid_shapes(count: int, generator: Generator) -> Tensor:
    return torch.tensor(_SOLID)[torch.randint(len(_SOLID), (count,), generator=generator)]


def _colours_led_by(wanted_N: Tensor, generator: Generator) -> Tensor:
    """A random order of the class colours that starts with the wanted one, [N, O]."""
    priority_NO = torch.rand(len(wanted_N), _OBJECTS, generator=generator)
    priority_NO[torch.arange(len(wanted_N)), wanted_N] = -1.0
    return priority_NO.argsort(1)


def _static_centres(count: int, generator: Generator) -> Tensor:
    """Near the middles of four different cells of a 3 x 3 grid, [N, O, 2]."""
    cell_NO = torch.rand(count, 9, generator=generator).argsort(1)[:, :_OBJECTS]
    grid_NO2 = torch.stack([cell_NO % 3, cell_NO // 3], dim=-1)
    jitter = uniform(count * _OBJECTS * 2, -1.5, 1.5, generator).view(count, _OBJECTS, 2)
    return (grid_NO2 + 0.5) * (UNITS / 3) + jitter


def _paths(direction_N: Tensor, generator: Generator) -> Tensor:
    """Straight horizontal paths, symmetric in time around a random place, [N, T, 2]."""
    count = len(direction_N)
    speed_N = uniform(count, *_STEP, generator) / _SAMPLED_EVERY
    velocity_N = speed_N * (2 * direction_N - 1)
    middle_N2 = uniform(2 * count, 0, UNITS, generator).view(count, 2)
    time_T = torch.arange(FRAMES) - (FRAMES - 1) / 2
    x_NT = middle_N2[:, :1] + velocity_N[:, None] * time_T
    return torch.stack([x_NT, middle_N2[:, 1:].expand(count, FRAMES)], dim=-1)
