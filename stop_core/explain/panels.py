"""The parts of the figure and the film of an explanation.

Shapes: one frame of H x W pixels, P patches of it, G gaps.
"""

from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from stop_core.explain.explanation import Explanation
from stop_core.storage.escaping import in_figure, in_line

REGION, CURVE, PROMPT, FAINT = "#2ee6ff", "#f26b21", "#0e7c86", "#d5dde0"
INK, GREY = "#1b262c", "#66757c"
HEAT = "inferno"
_DIM = 0.5  # brightness of patches that are not chosen
_LABEL_LINE = 24  # characters


def regions_picture(
    picture_HWC: NDArray[np.uint8], chosen_P: NDArray[np.bool_], side: int
) -> NDArray[np.float64]:
    """Returns the frame, dimmed and pale where nothing is chosen, [H, W, 3] from 0 to 1."""
    colour = picture_HWC / 255
    chosen_HW1 = per_pixel(chosen_P.reshape(side, side), picture_HWC)[..., None]
    pale = 0.5 * colour + 0.5 * colour.mean(-1, keepdims=True)
    return np.where(chosen_HW1, colour, _DIM * pale)


def heat_picture(
    picture_HWC: NDArray[np.uint8], values_P: NDArray[np.float32], side: int, top: float
) -> NDArray[np.float64]:
    """Returns the frame in grey under the colours of the values, [H, W, 3] from 0 to 1."""
    share = np.clip(values_P.reshape(side, side) / max(top, 1e-9), 0, 1)
    heat = colormaps[HEAT](share)[..., :3]
    heat_HWC = per_pixel(heat, picture_HWC)
    # The lower a value, the more of the picture shows through.
    cover_HW1 = 0.45 + 0.4 * per_pixel(share, picture_HWC)[..., None]
    grey_HW1 = (picture_HWC / 255) @ np.array([[0.299], [0.587], [0.114]])
    blended: NDArray[np.float64] = (1 - cover_HW1) * grey_HW1 + cover_HW1 * heat_HWC
    return blended


def show_picture(axes: Axes, picture_HWC: NDArray[Any]) -> None:
    """Draws a picture without a frame or ticks; x and y run from 0 to 1."""
    axes.imshow(picture_HWC, interpolation="nearest", extent=(0, 1, 1, 0))
    axes.set_axis_off()


def outline(axes: Axes, chosen_P: NDArray[np.bool_], side: int, width: float) -> None:
    """Draws the border of the chosen patches, without lines between neighbours."""
    grid = np.pad(chosen_P.reshape(side, side), 1)
    lines = [
        [(c / side, r / side), ((c + 1) / side, r / side)]
        for r, c in zip(*np.nonzero(grid[1:, 1:-1] != grid[:-1, 1:-1]), strict=True)
    ] + [
        [(c / side, r / side), (c / side, (r + 1) / side)]
        for r, c in zip(*np.nonzero(grid[1:-1, 1:] != grid[1:-1, :-1]), strict=True)
    ]
    border = LineCollection(lines, colors=REGION, linewidths=width, capstyle="round", clip_on=False)
    border.set_path_effects([Stroke(linewidth=width + 1.4, foreground="black"), Normal()])
    axes.add_collection(border)


def draw_gaps(axes: Axes, explanation: Explanation, until: int | None = None) -> None:
    """Draws the curve of W^t over the gaps, and the N_t prompts of each, on one scale.

    The scale counts prompts: a gap gets eta * W^t of them, rounded up, and at most K.

    Args:
        axes: x is the frame number, from 0.
        explanation: the source.
        until: gaps after this frame are drawn faintly; default: none.
    """
    config, gaps = explanation.config, len(explanation.W_t_G)
    most = config.max_prompts
    curve = np.minimum(config.eta * explanation.W_t_G, most + 0.25)
    for gap in range(gaps):
        seen = until is None or gap < until
        for slot in range(most):
            filled = slot < explanation.N_t_G[gap]
            face = (PROMPT if seen else FAINT) if filled else "white"
            axes.add_patch(
                FancyBboxPatch(
                    (gap + 0.36, slot + 0.14), 0.28, 0.72,
                    boxstyle="round,pad=0,rounding_size=0.1", mutation_aspect=2,
                    facecolor=face, edgecolor=face if filled else FAINT, linewidth=0.8,
                )
            )  # fmt: skip
        axes.text(
            gap + 0.5, most + 0.52, str(explanation.N_t_G[gap]), ha="center", va="center",
            fontsize=10, color=PROMPT if seen else FAINT, weight="bold",
        )  # fmt: skip
    (line,) = axes.plot(np.arange(gaps) + 0.5, curve, "o-", color=CURVE, lw=2, ms=4.5, zorder=3)
    line.set_path_effects([Stroke(linewidth=4, foreground="white"), Normal()])
    axes.set(xlim=(-0.5, gaps + 0.5), ylim=(-0.2, most + 0.95), yticks=range(0, most + 1))
    axes.tick_params(length=0, labelsize=9, colors=GREY)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color="#eef2f3", zorder=0)
    axes.set_axisbelow(True)


def draw_answers(axes: Axes, explanation: Explanation, size: float) -> None:
    """Draws the most probable classes as bars, the best in colour, the true one with a tick."""
    axes.set_axis_off()
    rows = max(len(explanation.answers), 3)
    axes.set(xlim=(0, 1), ylim=(rows, 0))
    for row, answer in enumerate(explanation.answers):
        best = row == 0
        axes.barh(row + 0.72, 1, height=0.24, color="#eef2f3")
        axes.barh(row + 0.72, answer.probability, height=0.24, color=PROMPT if best else "#9fb3ba")
        weight = "bold" if best else "normal"
        lines = wrapped(answer.label)
        if answer.label == explanation.truth:
            lines[-1] += " \u2713"
        shrunk = size if len(lines) == 1 else 0.82 * size
        axes.text(0, row + 0.53, "\n".join(lines), fontsize=shrunk, color=INK, weight=weight,
                  va="bottom", linespacing=1.05)  # fmt: skip
        percent = f"{answer.probability:.0%}" if answer.probability >= 0.01 else "<1%"
        axes.text(1, row + 0.53, percent, fontsize=size, color=INK,
                  weight=weight, ha="right", va="bottom")  # fmt: skip


def draw_scale(axes: Axes) -> None:
    """Draws the colours of the maps, from 0 to the greatest value of all frames."""
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=HEAT, aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xticks=(0, 1), yticks=[])
    axes.set_xticklabels(("0", "most, in this video"), fontsize=9, color=GREY)
    axes.xaxis.get_ticklabels()[1].set_horizontalalignment("right")
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)


def shortened(text: str, longest: int) -> str:
    """Returns a name in words, of at most `longest` characters."""
    words = in_line(text).replace("_", " ")
    short = words if len(words) <= longest else words[: longest - 3].rstrip() + "..."
    return in_figure(short)


def wrapped(label: str) -> list[str]:
    """Returns a label in words, in at most two lines."""
    words = in_line(label).replace("_", " ")
    lines = wrap(words, _LABEL_LINE, max_lines=2, placeholder="...")
    return [in_figure(line) for line in lines] or [""]


def settings(explanation: Explanation) -> str:
    """Returns tower, block and settings in one line."""
    config = explanation.config
    return (
        f"STOP on {in_figure(explanation.tower)}, block {explanation.block} of the "
        f"{explanation.blocks} prompted; $N_s$ = {config.n_s}, $\\alpha$ = {config.alpha:g}, "
        f"$\\beta$ = {config.beta:g}, $\\eta$ = {config.eta:g}, K = {config.max_prompts}"
    )


def per_pixel(values: NDArray[Any], picture_HWC: NDArray[np.uint8]) -> NDArray[Any]:
    """Repeats values per patch, [side, side, ...], for every pixel, [H, W, ...]."""
    rows, columns = (np.arange(p) * len(values) // p for p in picture_HWC.shape[:2])
    repeated: NDArray[Any] = values[rows][:, columns]
    return repeated
