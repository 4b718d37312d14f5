"""A picture of a cache to look at: a row a clip, its frames side by side, its name above."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stop_core.cache.reading import CachedClips
from stop_core.cache.views import View
from stop_core.storage.escaping import in_line

_TEXT_HEIGHT = 16
_GAP = 4
_LEAST_FRAME = 96


def evenly(count: int, most: int) -> list[int]:
    """Returns at most `most` of `count` numbers, spread evenly."""
    chosen = min(count, most)
    return [(2 * i + 1) * count // (2 * chosen) for i in range(chosen)]


def contact_sheet(clips: CachedClips, chosen: Sequence[int], frames: int) -> Image.Image:
    """Draws the clips of the numbers `chosen`, at most `frames` frames of each.

    Frames are the centre squares that a model is shown by default, small ones enlarged by a whole
    factor so that single pixels can be seen.
    """
    shown, size = min(frames, clips.shape[0]), clips.shape[1]
    scale = max(1, _LEAST_FRAME // size)
    edge = size * scale
    width = shown * (edge + _GAP) + _GAP
    sheet = Image.new("RGB", (width, len(chosen) * (edge + _TEXT_HEIGHT + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_HEIGHT - 4)
    for row, number in enumerate(chosen):
        top = _GAP + row * (edge + _TEXT_HEIGHT + _GAP)
        draw.text((_GAP, top), in_line(clips.video_ids[number]), fill="black", font=font)
        pictures = clips.read([number], View(frames=shown))[0].numpy()
        large = np.repeat(np.repeat(pictures, scale, axis=1), scale, axis=2)
        for column, picture in enumerate(large):
            place = (_GAP + column * (edge + _GAP), top + _TEXT_HEIGHT)
            sheet.paste(Image.fromarray(picture), place)
    return sheet
