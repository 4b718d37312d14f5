"""Contact sheets: one row per video, its frames side by side, its name above.

Shapes: T frames of S x S pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stop_core.cache.reading import CachedClips
from stop_core.cache.views import View
from stop_core.decoding import segment_midpoints
from stop_core.storage.escaping import in_line

_GAP, _EDGE, _TEXT, _HEADING = 6, 16, 22, 40
LEAST_PIXELS = 96
_INK, _GREY, _EMPTY = (27, 38, 44), (102, 117, 124), (238, 242, 243)


@dataclass(frozen=True)
class Strip:
    """One row of a sheet."""

    name: str
    note: str
    """Right of the name, in grey."""
    frames_TSSC: NDArray[np.uint8] | None
    """None leaves the row empty; the note gives the reason."""


def draw_contact_sheet(
    heading: str, strips: Sequence[Strip], frames: int, size: int
) -> Image.Image:
    """Draws the strips, each with room for `frames` frames of `size` pixels."""
    row = size + _TEXT + _GAP + 8
    width = 2 * _EDGE + frames * (size + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _EDGE + _HEADING + len(strips) * row + _EDGE), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(22), ImageFont.load_default(15)
    draw.text((_EDGE, _EDGE), _fitting(draw, heading, large, width - 2 * _EDGE), _INK, font=large)
    for number, strip in enumerate(strips):
        top = _EDGE + _HEADING + number * row
        note = in_line(strip.note)
        note_width = draw.textlength(note, small)
        name = _fitting(draw, strip.name, small, width - 3 * _EDGE - note_width)
        draw.text((_EDGE, top), name, fill=_INK, font=small)
        draw.text((width - _EDGE - note_width, top), note, fill=_GREY, font=small)
        for column in range(frames):
            left, below = _EDGE + column * (size + _GAP), top + _TEXT
            if strip.frames_TSSC is None or column >= len(strip.frames_TSSC):
                draw.rectangle((left, below, left + size - 1, below + size - 1), fill=_EMPTY)
                continue
            # Small frames are enlarged without interpolation, so that single pixels can be seen.
            picture = Image.fromarray(strip.frames_TSSC[column])
            method = Image.Resampling.NEAREST if picture.width < size else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((size, size), method), (left, below))
    return sheet


def draw_clips(heading: str, clips: CachedClips, most: int, frames: int) -> Image.Image:
    """Draws at most `most` clips of a cache, spread evenly, with at most `frames` of each."""
    shown, pixels = min(frames, clips.shape[0]), clips.shape[1]
    strips = [
        Strip(clips.video_ids[clip], "", clips.read([clip], View(frames=shown))[0].numpy())
        for clip in segment_midpoints(len(clips), min(most, len(clips))).tolist()
    ]
    size = pixels * max(1, LEAST_PIXELS // pixels)  # a whole factor: all pixels equally large
    return draw_contact_sheet(heading, strips, shown, size)


def _fitting(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: float,
) -> str:
    """Returns the text, with its middle left out if it is too long."""
    text = in_line(text)
    if draw.textlength(text, font) <= width:
        return text
    for half in range(len(text) // 2, 0, -1):
        shorter = f"{text[:half]}...{text[-half:]}"
        if draw.textlength(shorter, font) <= width:
            return shorter
    return "..."
