"""An explanation as one picture: every frame, its maps, the prompts between, the answer.

Lengths in inches. Shapes: T frames, C of them shown.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

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
    """Draws it, at the width of a slide."""
    shown = _evenly(len(explanation.pictures_THWC))
    cell = min(_LARGEST_CELL, (_WIDTH - _LEFT - _RIGHT - _EDGE) / len(shown) - _GAP)
    strip = len(shown) * (cell + _GAP)
    width = _LEFT + strip + _RIGHT + _EDGE
    height = _HEAD + len(_ROWS) * (cell + _GAP) + _CURVE + _FOOT
    figure = Figure(figsize=(width, height), facecolor="white")
    page = _Page(figure, width, height)
    _head(page, explanation)
    for row in range(len(_ROWS)):
        _strip(page, explanation, row, shown, cell)
    if len(explanation.W_t_G):
        below = _HEAD + len(_ROWS) * (cell + _GAP) + 0.1
        axes = page.axes(_LEFT, below, strip, _CURVE - 0.1)
        _curve(axes, explanation, shown, page, below)
    scale_top = _HEAD + len(_ROWS) * (cell + _GAP) - 0.25 - _GAP
    draw_scale(page.axes(_LEFT + strip + 0.45, scale_top, _RIGHT - 0.45, 0.12))
    if explanation.answers:
        rows = len(explanation.answers)
        left = _LEFT + strip + 0.45
        page.text(left, _HEAD - 0.16, "prediction", 12, GREY)
        tall = min(0.62 * max(rows, 3), height - _HEAD - _FOOT)
        axes = page.axes(left, _HEAD, _RIGHT - 0.45, tall)
        draw_answers(axes, explanation, 13)
    return figure


class _Page:
    """A figure that is measured in inches from its upper left corner."""

    def __init__(self, figure: Figure, width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def axes(self, left: float, top: float, width: float, height: float):  # type: ignore[no-untyped-def]
        box = (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        return self.figure.add_axes(box)

    def text(
        self, left: float, base: float, text: str, size: float, colour: str, **style: Any
    ) -> None:
        self.figure.text(
            left / self.width, 1 - base / self.height, text, fontsize=size, color=colour, **style
        )


def _head(page: _Page, explanation: Explanation) -> None:
    page.text(_EDGE, 0.45, shortened(explanation.title, 90), 19, INK, weight="bold")
    page.text(_EDGE, 0.75, settings(explanation), 11.5, GREY)


def _strip(
    page: _Page, explanation: Explanation, row: int, shown: NDArray[np.int64], cell: float
) -> None:
    """One row: a symbol and its meaning, and a picture of every frame that is shown."""
    symbol, meaning = _ROWS[row]
    top = _HEAD + row * (cell + _GAP)
    middle = top + cell / 2
    page.text(_EDGE, middle - 0.02, symbol, 19, INK, va="bottom")
    page.text(_EDGE, middle + 0.04, meaning, 9.5, GREY, va="top", linespacing=1.15)
    maps = (None, explanation.A_TP, explanation.M_TP, explanation.W_s_TP)[row]
    for column, frame in enumerate(shown):
        axes = page.axes(_LEFT + column * (cell + _GAP), top, cell, cell)
        picture, chosen = explanation.pictures_THWC[frame], explanation.chosen_TP[frame]
        if maps is None:
            show_picture(axes, regions_picture(picture, chosen, explanation.side))
            if explanation.times_T is not None:
                axes.text(0.5, -0.06, f"{explanation.times_T[frame]:.2f} s", ha="center",
                          va="bottom", fontsize=9, color=GREY)  # fmt: skip
        else:
            show_picture(
                axes, heat_picture(picture, maps[frame], explanation.side, float(maps.max()))
            )
        if row in (0, len(_ROWS) - 1):
            outline(axes, chosen, explanation.side, 1.6)


def _curve(axes, explanation: Explanation, shown, page: _Page, below: float) -> None:  # type: ignore[no-untyped-def]
    draw_gaps(axes, explanation)
    frames = len(explanation.pictures_THWC)
    half = 0.5 * frames / len(shown)  # so that a gap lies between its frames
    axes.set_xlim(-half, frames - 1 + half)
    axes.set_xticks([])
    page.text(_EDGE, below + 0.55, "$W^t,\\, N^t$", 19, INK, va="bottom")
    page.text(_EDGE, below + 0.61, "change in a gap\nand its prompts:\nthe curve is $\\eta W^t$,\n"
              "rounded up", 9.5, GREY, va="top", linespacing=1.15)  # fmt: skip


def _evenly(frames: int) -> NDArray[np.int64]:
    """Which frames are shown: all, or as many as fit, spread evenly."""
    count = min(frames, _MOST_SHOWN)
    return (np.arange(count) * 2 + 1) * frames // (2 * count)
