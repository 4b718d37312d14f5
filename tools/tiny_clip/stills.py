"""Random captioned stills, the pretraining data of the tiny CLIP.

A still shows one or two shapes. Its caption names a random subset of the attributes of one shape
("a picture of a small shape at the top left") or, for a quarter of the stills, all attributes of
every shape. Short captions fit several stills of a batch, so the batch has a matrix of which
caption is true of which still, for a contrastive loss with several positives.

Shapes: N stills (and N captions), O = 2 objects, A = 4 attributes in the order of `ATTRIBUTES`.
"""

from dataclasses import dataclass

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

SIZES = ("small", "large")
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "colour": COLOURS,
    "shape": SHAPES,
    "position": POSITIONS,
}
STILL_TEMPLATES = ("a photo of a ", "an image of a ", "a picture of a ", "a video of a ", "a ")

_TWO_OBJECTS = 0.4  # share of the stills with a second object
_FULL_CAPTION = 0.25  # share of the captions that name everything
_RADII = ((3.0, 4.4), (6.0, 8.0))  # units: small, large
_JITTER = 3.0  # units, around the middle of a cell of the 3 x 3 grid of positions


@dataclass(frozen=True)
class Stills:
    """A batch of captioned stills.

    images_NCHW: [N, 3, H, W], normalised to [-1, 1] as the tiny CLIP takes them.
    captions: one per still, N in all.
    match_NN: bool, row i and column j: caption j is true of still i; its diagonal is all true.
    labels_NA: the attributes of each still's first object, indices into `ATTRIBUTES`.
    """

    images_NCHW: Tensor
    captions: list[str]
    match_NN: Tensor
    labels_NA: Tensor


def draw_stills(
    count: int, generator: Generator, *, pixels: int = 32, single: bool = False
) -> Stills:
    """Draws `count` captioned stills of `pixels` a side; with `single`, each shows one object.

    The grain takes as many draws as there are pixels, so at two sizes the first batch of a
    generator shows the same pictures under other captions, and the next ones other pictures.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    labels_NOA = _draw_labels(count, generator)
    two_N = torch.rand(count, generator=generator) < (0 if single else _TWO_OBJECTS)
    images_NCHW = _render(labels_NOA, two_N, pixels, generator)
    named_NA, full_N = _draw_naming(count, generator)
    both_N = full_N & two_N
    captions = _captions(labels_NOA, named_NA, both_N, generator)
    match_NN = caption_matches(labels_NOA, two_N, named_NA, both_N)
    return Stills(images_NCHW * 2 - 1, captions, match_NN, labels_NOA[:, 0])


def caption_matches(labels_NOA: Tensor, two_N: Tensor, named_NA: Tensor, both_N: Tensor) -> Tensor:
    """Returns which caption (column) is true of which still (row), bool [N, N].

    A caption of one object is true where any object of the still has every attribute it names
    (`named_NA`); a caption of two (`both_N`) where that holds for both of them.
    """
    first_NN = _shown(labels_NOA, two_N, labels_NOA[:, 0], named_NA)
    second_NN = _shown(labels_NOA, two_N, labels_NOA[:, 1], named_NA) & two_N[:, None]
    return first_NN & (second_NN | ~both_N[None, :])


def _shown(labels_NOA: Tensor, two_N: Tensor, wanted_NA: Tensor, named_NA: Tensor) -> Tensor:
    """Whether still i (row) shows an object with the named attributes j (column), [N, N]."""
    agrees_NNOA = labels_NOA[:, None] == wanted_NA[None, :, None]
    fits_NNO = (agrees_NNOA | ~named_NA[None, :, None]).all(-1)
    return fits_NNO[..., 0] | (fits_NNO[..., 1] & two_N[:, None])


def describe_object(labels_A: list[int], named_A: list[bool] | None = None) -> str:
    """Returns a description of one object, such as "small red circle at the top left".

    Only the attributes set in `named_A` are named (default: all); an object whose shape is not
    named is a "shape".
    """
    names = [words[label] for words, label in zip(ATTRIBUTES.values(), labels_A, strict=True)]
    size, colour, shape, position = (
        name if named else "" for name, named in zip(names, named_A or [True] * 4, strict=True)
    )
    place = f"at the {position}" if position else ""
    return " ".join(word for word in (size, colour, shape or "shape", place) if word)


def _draw_labels(count: int, generator: Generator) -> Tensor:
    """Attributes of two objects in different places, [N, O, A]."""
    columns = [
        torch.randint(len(words), (count, 2), generator=generator) for words in ATTRIBUTES.values()
    ]
    elsewhere = torch.randint(1, len(POSITIONS), (count,), generator=generator)
    columns[3][:, 1] = (columns[3][:, 0] + elsewhere) % len(POSITIONS)
    return torch.stack(columns, dim=-1)


def _render(labels_NOA: Tensor, two_N: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Images in [0, 1], [N, 3, H, W]; the first object covers the second."""
    count = len(labels_NOA)
    image = quiet_background(count, pixels, generator)
    cell = UNITS / 3
    for which in (1, 0):
        size, colour, shape, position = labels_NOA[:, which].unbind(-1)
        grid_N2 = torch.stack([position % 3, position // 3], dim=-1)
        jitter_N2 = uniform(2 * count, -_JITTER, _JITTER, generator).view(count, 2)
        low, high = torch.tensor(_RADII)[size].unbind(-1)
        radius = low + (high - low) * torch.rand(count, generator=generator)
        angle = any_angle(count, generator)
        centre_N2 = (grid_N2 + 0.5) * cell + jitter_N2
        mask = coverage(shape, centre_N2, radius, angle, pixels)
        if which == 1:
            mask = mask * two_N[:, None, None]
        image = paint(image, mask, jittered_colours(colour, generator))
    return (image + 0.04 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def _draw_naming(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Which attributes each caption names, never none, [N, A]; and which name all, [N]."""
    named_NA = torch.rand(count, 4, generator=generator) < 0.5
    full_N = torch.rand(count, generator=generator) < _FULL_CAPTION
    fallback_N = torch.randint(4, (count,), generator=generator)
    nothing_N = ~named_NA.any(-1)
    named_NA[nothing_N, fallback_N[nothing_N]] = True
    return named_NA | full_N[:, None], full_N


def _captions(
    labels_NOA: Tensor, named_NA: Tensor, both_N: Tensor, generator: Generator
) -> list[str]:
    count = len(labels_NOA)
    templates = torch.randint(len(STILL_TEMPLATES), (count,), generator=generator).tolist()
    swapped = (torch.rand(count, generator=generator) < 0.5).tolist()
    labels, named, both = labels_NOA.tolist(), named_NA.tolist(), both_N.tolist()
    captions = []
    for i in range(count):
        parts = [
            describe_object(labels[i][which], named[i]) for which in ((0, 1) if both[i] else (0,))
        ]
        ordered = parts[::-1] if swapped[i] else parts
        captions.append(STILL_TEMPLATES[templates[i]] + " and a ".join(ordered))
    return captions
