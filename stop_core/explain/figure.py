"""An explanation as one figure: the frames, their maps, the prompts between them, the prediction.

Lengths are in inches. Shapes: T frames.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stop_core.decoding import segment_midpoints
from stop_core.explain.explanation import Explanation
from stop_core.explain.panels import (
    GREY,
    INK,
    draw_answers,
    draw_gaps,
    draw_scale,
    heat_picture,
    outline,
    regions_picture,
    settings,
    shortened,
    show_picture,
)

_MOST_SHOWN = 12
_LEFT, _RIGHT, _EDGE, _GAP = 1.75, 3.3, 0.3, 0.07
_HEAD, _CURVE, _FOOT = 1.15, 1.75, 0.5
_WIDTH = 16.0
_LARGEST_CELL = 1.5
_ROWS = (
    ("$r$", "regions that\nget a prompt"),
    ("$A$", "where CLS\nlooks"),
    ("$M$", "what changes\nover time"),
    ("$W^s$", r"$\alpha A + (1-\alpha) M$"),
)


def draw_explanation(explanation: Explanation) -> Figure:
    """Draws an explanation at the width of a slide: all frames, or 12 that are spread evenly."""
    frames = len(explanation.pictures_THWC)
    shown = segment_midpoints(frames, min(frames, _MOST_SHOWN))
    cell = min(_LARGEST_CELL, (_WIDTH - _LEFT - _RIGHT - _EDGE) / len(shown) - _GAP)
    strip = len(shown) * (cell + _GAP)
    below = _HEAD + len(_ROWS) * (cell + _GAP)
    page = _Page(_LEFT + strip + _RIGHT + _EDGE, below + _CURVE + _FOOT)
    page.text(_EDGE, 0.45, shortened(explanation.title, 90), 19, INK, weight="bold")
    page.text(_EDGE, 0.75, settings(explanation), 11.5, GREY)
    for row in range(len(_ROWS)):
        _draw_row(page, explanation, row, shown, cell)
    if len(explanation.W_t_G):
        axes = page.axes(_LEFT, below + 0.1, strip, _CURVE - 0.1)
        draw_gaps(axes, explanation)
        half = 0.5 * frames / len(shown)  # each gap is below the edge between its two frames
        axes.set(xlim=(-half, frames - 1 + half), xticks=[])
        page.symbol(
            below + 0.65,
            "$W^t,\\, N^t$",
            "change in a gap\nand its prompts:\nthe curve is $\\eta W^t$,\nrounded up",
        )
    left, width = _LEFT + strip + 0.45, _RIGHT - 0.45
    draw_scale(page.axes(left, below - 0.25 - _GAP, width, 0.12))
    if explanation.answers:
        page.text(left, _HEAD - 0.16, "prediction", 12, GREY)
        tall = min(0.62 * max(len(explanation.answers), 3), page.height - _HEAD - _FOOT)
        draw_answers(page.axes(left, _HEAD, width, tall), explanation, 13)
    return page.figure


class _Page:
    """A figure that is measured in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.width, self.height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (
                left / self.width,
                1 - (top + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )

    def text(
        self, left: float, base: float, text: str, size: float, colour: str, **style: Any
    ) -> None:
        self.figure.text(
            left / self.width, 1 - base / self.height, text, fontsize=size, color=colour, **style
        )

    def symbol(self, middle: float, symbol: str, meaning: str) -> None:
        """Writes a symbol of the paper at the left edge, and its meaning below."""
        self.text(_EDGE, middle - 0.02, symbol, 19, INK, va="bottom")
        self.text(_EDGE, middle + 0.04, meaning, 9.5, GREY, va="top", linespacing=1.15)


def _draw_row(
    page: _Page, explanation: Explanation, row: int, shown: NDArray[np.int32], cell: float
) -> None:
    top = _HEAD + row * (cell + _GAP)
    page.symbol(top + cell / 2, *_ROWS[row])
    maps = (None, explanation.A_TP, explanation.M_TP, explanation.W_s_TP)[row]
    side = explanation.side
    for column, frame in enumerate(shown):
        axes = page.axes(_LEFT + column * (cell + _GAP), top, cell, cell)
        picture, chosen = explanation.pictures_THWC[frame], explanation.chosen_TP[frame]
        if maps is None:
            show_picture(axes, regions_picture(picture, chosen, side))
            if explanation.times_T is not None:
                time = f"{explanation.times_T[frame]:.2f} s"
                axes.text(0.5, -0.06, time, ha="center", va="bottom", fontsize=9, color=GREY)
        else:
            show_picture(axes, heat_picture(picture, maps[frame], side, float(maps.max())))
        if row in (0, len(_ROWS) - 1):
            outline(axes, chosen, side, 1.6)
