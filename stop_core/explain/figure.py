"""An explanation as one figure, and as a film: each frame with its maps and its prompts.

Shapes: T frames, one frame of H x W pixels, P patches of it, G gaps.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import av
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray
from PIL import Image

from stop_core.decoding import segment_midpoints
from stop_core.explain.explanation import Explanation
from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_figure, in_line

_REGION, _CURVE, _PROMPT, _FAINT = "#2ee6ff", "#f26b21", "#0e7c86", "#d5dde0"
_INK, _GREY = "#1b262c", "#66757c"
_HEAT = "inferno"
_DIM = 0.5  # brightness of patches that are not chosen
_LABEL_LINE, _SHORT_LABEL = 24, 18  # characters

# The figure, in inches.
_MOST_SHOWN = 12
_LEFT, _RIGHT, _EDGE, _GAP = 1.75, 3.3, 0.3, 0.07
_HEAD, _TIMELINE, _FOOT = 1.15, 1.75, 0.5
_WIDTH = 16.0
_LARGEST_CELL = 1.5
_ROWS = (
    ("$r$", "regions that\nget a prompt"),
    ("$A$", "where CLS\nlooks"),
    ("$M$", "what changes\nover time"),
    ("$W^s$", r"$\alpha A + (1-\alpha) M$"),
)

# The film.
ENDINGS = (".mp4", ".gif")
_INCHES, _DOTS = (12.8, 7.2), 100  # 1280 x 720 pixels
_GIF_WIDTH = 960
_RATE = 10  # pictures per second
_HELD, _HELD_AT_END = 6, 15  # pictures per frame, and for the last frame
_MAPS = (  # title, left, bottom
    ("$A$  where CLS looks", 0.36, 0.606),
    ("$M$  what changes", 0.515, 0.606),
    ("$W^s$  both, mixed", 0.36, 0.335),
)


def draw_explanation(explanation: Explanation) -> Figure:
    """Draws an explanation at the width of a slide: all frames, or 12 that are spread evenly."""
    frames = len(explanation.pictures_THWC)
    shown = segment_midpoints(frames, min(frames, _MOST_SHOWN))
    cell = min(_LARGEST_CELL, (_WIDTH - _LEFT - _RIGHT - _EDGE) / len(shown) - _GAP)
    strip = len(shown) * (cell + _GAP)
    below = _HEAD + len(_ROWS) * (cell + _GAP)
    height = below + _TIMELINE + _FOOT
    page = _Page(figsize=(_LEFT + strip + _RIGHT + _EDGE, height), facecolor="white")
    title = shortened(explanation.title, 90)
    page.write(_EDGE, 0.45, title, fontsize=19, color=_INK, weight="bold")
    page.write(_EDGE, 0.75, settings(explanation), fontsize=11.5, color=_GREY)
    for row in range(len(_ROWS)):
        _draw_row(page, explanation, row, shown, cell)
    if len(explanation.W_t_G):
        axes = page.place(_LEFT, below + 0.1, strip, _TIMELINE - 0.1)
        draw_gaps(axes, explanation)
        half = 0.5 * frames / len(shown)  # each gap is below the edge between its two frames
        axes.set(xlim=(-half, frames - 1 + half), xticks=[])
        page.symbol(
            below + 0.65,
            "$W^t,\\, N^t$",
            "change in a gap\nand its prompts:\nthe curve is $\\eta W^t$,\nrounded up",
        )
    left, width = _LEFT + strip + 0.45, _RIGHT - 0.45
    scale = page.place(left, below - 0.25 - _GAP, width, 0.12)  # of all maps, for all frames
    scale.imshow(np.linspace(0, 1, 256)[None], cmap=_HEAT, aspect="auto", extent=(0, 1, 0, 1))
    scale.set(xticks=(0, 1), yticks=[])
    scale.set_xticklabels(("0", "most, in this video"), fontsize=9, color=_GREY)
    scale.xaxis.get_ticklabels()[1].set_horizontalalignment("right")
    scale.tick_params(length=0, pad=3)
    scale.spines[:].set_visible(False)
    if explanation.answers:
        page.write(left, _HEAD - 0.16, "prediction", fontsize=12, color=_GREY)
        tall = min(0.62 * max(len(explanation.answers), 3), height - _HEAD - _FOOT)
        draw_answers(page.place(left, _HEAD, width, tall), explanation, 13)
    return page


class _Page(Figure):
    """A figure that is measured in inches from its upper left corner."""

    def place(self, left: float, top: float, width: float, height: float) -> Axes:
        wide, tall = self.get_size_inches()
        return self.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))

    def write(self, left: float, base: float, text: str, **style: Any) -> None:
        wide, tall = self.get_size_inches()
        self.text(left / wide, 1 - base / tall, text, **style)

    def symbol(self, middle: float, symbol: str, meaning: str) -> None:
        """Writes a symbol of the paper at the left edge, and its meaning below."""
        self.write(_EDGE, middle - 0.02, symbol, fontsize=19, color=_INK, va="bottom")
        below = {"fontsize": 9.5, "color": _GREY, "va": "top", "linespacing": 1.15}
        self.write(_EDGE, middle + 0.04, meaning, **below)


def _draw_row(
    page: _Page, explanation: Explanation, row: int, shown: NDArray[np.int32], cell: float
) -> None:
    top = _HEAD + row * (cell + _GAP)
    page.symbol(top + cell / 2, *_ROWS[row])
    maps = (None, explanation.A_TP, explanation.M_TP, explanation.W_s_TP)[row]
    side = explanation.side
    for column, frame in enumerate(shown):
        axes = page.place(_LEFT + column * (cell + _GAP), top, cell, cell)
        picture, chosen = explanation.pictures_THWC[frame], explanation.chosen_TP[frame]
        if maps is None:
            show_picture(axes, regions_picture(picture, chosen, side))
            if explanation.times_T is not None:
                time = f"{explanation.times_T[frame]:.2f} s"
                axes.text(0.5, -0.06, time, ha="center", va="bottom", fontsize=9, color=_GREY)
        else:
            show_picture(axes, heat_picture(picture, maps[frame], side, float(maps.max())))
        if row in (0, len(_ROWS) - 1):
            outline(axes, chosen, side, 1.6)


def draw_below(explanations: Sequence[Explanation]) -> Image.Image:
    """Draws explanations of one video by several models, one below the other."""
    pages = []
    for one in explanations:
        drawn = io.BytesIO()
        draw_explanation(one).savefig(drawn, format="png", dpi=120)
        pages.append(Image.open(drawn).convert("RGB"))
    size = max(page.width for page in pages), sum(page.height for page in pages)
    whole, top = Image.new("RGB", size, "white"), 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    return whole


def write_film(explanations: Sequence[Explanation], path: Path) -> None:
    """Writes the film atomically, as .mp4 or .gif: several models one below the other.

    Raises ValueError for another ending, or models that read different numbers of frames.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"a film is written as .mp4 or .gif, got {path.name}")
    counts = [len(one.pictures_THWC) for one in explanations]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the models read {' and '.join(map(str, counts))} frames of a video, and a film shows "
            "them frame by frame; compare models with the same number"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
        pictures = map(np.concatenate, zip(*map(scenes, explanations), strict=True))
        write(zip(pictures, [*[_HELD] * (counts[0] - 1), _HELD_AT_END], strict=True), staging)


def scenes(explanation: Explanation) -> Iterator[NDArray[np.uint8]]:
    """Yields a picture for every frame of the video, [720, 1280, 3]."""
    width, height = (round(inches * _DOTS) for inches in _INCHES)
    for frame in range(len(explanation.pictures_THWC)):
        drawn = io.BytesIO()
        _scene(explanation, frame).savefig(drawn, format="rgba", dpi=_DOTS)
        yield np.frombuffer(drawn.getvalue(), np.uint8).reshape(height, width, 4)[..., :3].copy()


def _scene(explanation: Explanation, frame: int) -> Figure:
    figure = Figure(figsize=_INCHES, dpi=_DOTS, facecolor="white")
    figure.text(
        0.03, 0.935, shortened(explanation.title, 70), fontsize=19, color=_INK, weight="bold"
    )
    figure.text(0.03, 0.895, settings(explanation), fontsize=11, color=_GREY)
    picture, chosen = explanation.pictures_THWC[frame], explanation.chosen_TP[frame]
    large = _square(figure, 0.03, 0.335, 0.53)
    show_picture(large, regions_picture(picture, chosen, explanation.side))
    outline(large, chosen, explanation.side, 2.4)
    maps = (explanation.A_TP, explanation.M_TP, explanation.W_s_TP)
    for (title, left, bottom), values in zip(_MAPS, maps, strict=True):
        axes = _square(figure, left, bottom, 0.226)
        heat = heat_picture(picture, values[frame], explanation.side, float(values.max()))
        show_picture(axes, heat)
        axes.set_title(title, fontsize=10, color=_GREY, loc="left", pad=4)
    when = "" if explanation.times_T is None else f", {explanation.times_T[frame]:.2f} s"
    count = f"frame {frame + 1} of {len(explanation.pictures_THWC)}{when}"
    figure.text(0.515, 0.53, count, fontsize=12, color=_INK)
    regions = f"{int(chosen.sum())} regions\nwith a prompt"
    figure.text(0.515, 0.505, regions, fontsize=12, color=_GREY, va="top", linespacing=1.3)
    if frame:
        prompts = f"{int(explanation.N_t_G[frame - 1])} prompts in the gap\nbefore this frame"
        figure.text(0.515, 0.425, prompts, fontsize=12, color=_PROMPT, va="top", linespacing=1.3)
    if explanation.answers:
        figure.text(0.71, 0.845, "prediction", fontsize=12, color=_GREY)
        draw_answers(figure.add_axes((0.71, 0.335, 0.26, 0.5)), explanation, 13)
    if len(explanation.W_t_G):
        figure.text(0.03, 0.19, "$W^t,\\, N^t$", fontsize=17, color=_INK)
        text = "change in a gap,\nand its prompts"
        figure.text(0.03, 0.125, text, fontsize=9.5, color=_GREY, linespacing=1.2)
        axes = figure.add_axes((0.15, 0.075, 0.82, 0.215))
        draw_gaps(axes, explanation, until=frame)
        axes.axvline(frame, color=_INK, lw=1.2, zorder=4)
        axes.plot([frame], [-0.2], marker="^", color=_INK, ms=8, clip_on=False, zorder=5)
        frames = len(explanation.pictures_THWC)
        axes.set_xlim(-0.5, frames - 0.5)
        axes.set_xticks(range(frames), [str(number + 1) for number in range(frames)])
        axes.tick_params(axis="x", pad=7)
    return figure


def _square(figure: Figure, left: float, bottom: float, height: float) -> Axes:
    width = height * _INCHES[1] / _INCHES[0]
    return figure.add_axes((left, bottom, width, height))


def _write_mp4(held: Iterable[tuple[NDArray[np.uint8], int]], path: Path) -> None:
    options = {"preset": "medium", "crf": "20"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=_RATE, options=options)
        stream.pix_fmt = "yuv420p"
        for number, (picture, count) in enumerate(held):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(held: Iterable[tuple[NDArray[np.uint8], int]], path: Path) -> None:
    images, times = [], []
    for picture, count in held:
        image = Image.fromarray(picture)
        size = (_GIF_WIDTH, round(_GIF_WIDTH * image.height / image.width))
        small = image.resize(size, Image.Resampling.LANCZOS)
        images.append(small.quantize(128, dither=Image.Dither.NONE))
        times.append(1000 * count // _RATE)
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=times, loop=0
    )


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
    heat = colormaps[_HEAT](share)[..., :3]
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
    border = LineCollection(
        lines, colors=_REGION, linewidths=width, capstyle="round", clip_on=False
    )
    border.set_path_effects([Stroke(linewidth=width + 1.4, foreground="black"), Normal()])
    axes.add_collection(border)


def draw_gaps(axes: Axes, explanation: Explanation, until: int | None = None) -> None:
    """Draws the curve of W^t over the gaps, and the N_t prompts of each, on one scale.

    The scale counts prompts: a gap gets eta * W^t of them, rounded up, and at most K. Gaps after
    the frame `until` are drawn faintly.
    """
    config, gaps = explanation.config, len(explanation.W_t_G)
    most = config.max_prompts
    curve = np.minimum(config.eta * explanation.W_t_G, most + 0.25)
    for gap in range(gaps):
        seen = until is None or gap < until
        for slot in range(most):
            filled = slot < explanation.N_t_G[gap]
            face = (_PROMPT if seen else _FAINT) if filled else "white"
            axes.add_patch(
                FancyBboxPatch(
                    (gap + 0.36, slot + 0.14), 0.28, 0.72,
                    boxstyle="round,pad=0,rounding_size=0.1", mutation_aspect=2,
                    facecolor=face, edgecolor=face if filled else _FAINT, linewidth=0.8,
                )
            )  # fmt: skip
        axes.text(
            gap + 0.5, most + 0.52, str(explanation.N_t_G[gap]), ha="center", va="center",
            fontsize=10, color=_PROMPT if seen else _FAINT, weight="bold",
        )  # fmt: skip
    (line,) = axes.plot(np.arange(gaps) + 0.5, curve, "o-", color=_CURVE, lw=2, ms=4.5, zorder=3)
    line.set_path_effects([Stroke(linewidth=4, foreground="white"), Normal()])
    axes.set(xlim=(-0.5, gaps + 0.5), ylim=(-0.2, most + 0.95), yticks=range(0, most + 1))
    axes.tick_params(length=0, labelsize=9, colors=_GREY)
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
        axes.barh(row + 0.72, answer.probability, height=0.24, color=_PROMPT if best else "#9fb3ba")
        weight = "bold" if best else "normal"
        lines = wrapped(answer.label)
        if answer.label == explanation.truth:
            lines[-1] += " \u2713"
        shrunk = size if len("".join(lines)) <= _SHORT_LABEL else 0.82 * size
        axes.text(0, row + 0.53, "\n".join(lines), fontsize=shrunk, color=_INK, weight=weight,
                  va="bottom", linespacing=1.05)  # fmt: skip
        percent = f"{answer.probability:.0%}" if answer.probability >= 0.01 else "<1%"
        axes.text(1, row + 0.53, percent, fontsize=size, color=_INK,
                  weight=weight, ha="right", va="bottom")  # fmt: skip


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
