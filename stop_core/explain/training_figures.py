"""Figures of one training.

Shapes: N classes, C clips, L prompted blocks, T frames, G = T - 1 gaps, P patches, E epochs.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from stop_core.explain.figure import outline, per_pixel, show_picture
from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_figure
from stop_core.storage.paths import StoragePath

_MOST_LABELS = 40  # class names that can be read
_MOST_FRAMES = 8


def save_figure(figure: Figure, path: StoragePath) -> None:
    """Writes a figure as PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        figure.savefig(staging, format="png", dpi=120)


def confusion(counts_NN: Tensor, names: Sequence[str], title: str) -> Figure:
    """Draws the shares of the clips of a class (row) by predicted class (column)."""
    names, classes = [in_figure(name) for name in names], len(names)
    readable = classes <= _MOST_LABELS
    edge = min(16.0, 3.5 + 0.32 * classes)
    figure = Figure(figsize=(edge + 1.2, edge), layout="constrained")
    axes = figure.subplots()
    rows_N1 = counts_NN.sum(1, keepdim=True).clamp(min=1)
    shares_NN = (counts_NN / rows_N1).numpy()
    picture = axes.imshow(shares_NN, cmap="Blues", vmin=0, vmax=1)
    if readable:
        axes.set_xticks(range(classes), names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(classes), names, fontsize=8)
        size = 9 if classes <= 12 else 5
        for (row, column), count in np.ndenumerate(counts_NN.numpy()):
            if count:
                colour = "white" if shares_NN[row, column] > 0.6 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=size, color=colour
                )
    counted = ", with the number of clips" if readable else ""
    axes.set(xlabel=f"predicted{counted}", ylabel="true", title=in_figure(title))
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class")
    return figure


def regions(
    frames_CTHWC: Tensor, regions_CLTP: Tensor, counts_CLG: Tensor, names: Sequence[str]
) -> Figure:
    """Draws the chosen patches on the frames of each clip, and the prompts in the gaps.

    The brightness of a patch is the share of the prompted blocks that chose it; it is outlined if
    that is at least half. A number between two frames is the mean of N_t over the blocks.
    """
    clips, frames = frames_CTHWC.shape[:2]
    shown = min(frames, _MOST_FRAMES)  # the first ones: only neighbours have a gap between them
    figure = Figure(figsize=(1.7 * shown, 1.85 * clips + 0.8), layout="constrained")
    grid = figure.subplots(clips, shown, squeeze=False)
    share_CTP = regions_CLTP.double().mean(1).numpy()
    side = math.isqrt(share_CTP.shape[-1])
    small = {"fontsize": 8, "ha": "center"}
    for clip in range(clips):
        for frame in range(shown):
            axes, share_P = grid[clip, frame], share_CTP[clip, frame]
            picture = frames_CTHWC[clip, frame].numpy()
            light = per_pixel(share_P.reshape(side, side), picture)[..., None]
            show_picture(axes, picture / 255 * (0.45 + 0.55 * light))
            outline(axes, share_P >= 0.5, side, 1.0)
            if frame + 1 < shown:
                count = counts_CLG[clip, :, frame].double().mean()
                axes.text(
                    1.04, 0.5, f"{count:.1f}", va="center", zorder=5, **small,
                    bbox={"boxstyle": "round,pad=0.2", "fc": "#ffd166", "ec": "none"},
                )  # fmt: skip
        name = grid[clip, 0].text(0, -0.05, in_figure(names[clip]), fontsize=8)
        name.set_in_layout(False)  # a long one would push the frames apart
    for frame in range(shown):
        grid[-1, frame].text(0.5, 1.05, f"frame {frame + 1}", va="top", **small)
    figure.suptitle(
        "patches with a spatial prompt: bright in many blocks, outlined in half of them or more\n"
        "between two frames, in yellow: temporal prompts, mean over the blocks",
        fontsize=9,
    )
    return figure


def prompts_per_gap(history_EG: Tensor, most: int) -> Figure:
    """Draws the mean number of temporal prompts in every gap, epoch by epoch."""
    epochs, gaps = history_EG.shape
    size = (min(14, 3 + 0.5 * epochs), min(8, 1.8 + 0.4 * gaps))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(
        history_EG.T.numpy(), aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=most,
        extent=(0.5, epochs + 0.5, 0.5, gaps + 0.5),
    )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="gap between frames", title="temporal prompts between frames")
    axes.set_yticks(range(1, gaps + 1))
    axes.set_xticks(range(1, epochs + 1, max(1, epochs // 12)))
    figure.colorbar(picture, ax=axes, label=f"N_t, mean over clips and blocks, at most {most}")
    return figure
