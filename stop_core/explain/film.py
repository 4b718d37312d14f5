"""An explanation as a film, MP4 or GIF: each frame with its maps and its prompts."""

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stop_core.explain.explanation import Explanation
from stop_core.explain.panels import (
    GREY,
    INK,
    PROMPT,
    draw_answers,
    draw_gaps,
    heat_picture,
    outline,
    regions_picture,
    settings,
    shortened,
    show_picture,
)
from stop_core.storage.atomic import appearing

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


def write_film(explanation: Explanation, path: Path) -> None:
    """Writes the film atomically, in the format of the ending of `path`.

    Raises:
        ValueError: if the ending is neither .mp4 nor .gif.
        OSError: if it cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"a film is written as .mp4 or .gif, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
        write(scenes(explanation), staging)


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
        0.03, 0.935, shortened(explanation.title, 70), fontsize=19, color=INK, weight="bold"
    )
    figure.text(0.03, 0.895, settings(explanation), fontsize=11, color=GREY)
    picture, chosen = explanation.pictures_THWC[frame], explanation.chosen_TP[frame]
    large = _square(figure, 0.03, 0.335, 0.53)
    show_picture(large, regions_picture(picture, chosen, explanation.side))
    outline(large, chosen, explanation.side, 2.4)
    maps = (explanation.A_TP, explanation.M_TP, explanation.W_s_TP)
    for (title, left, bottom), values in zip(_MAPS, maps, strict=True):
        axes = _square(figure, left, bottom, 0.226)
        heat = heat_picture(picture, values[frame], explanation.side, float(values.max()))
        show_picture(axes, heat)
        axes.set_title(title, fontsize=10, color=GREY, loc="left", pad=4)
    when = "" if explanation.times_T is None else f", {explanation.times_T[frame]:.2f} s"
    count = f"frame {frame + 1} of {len(explanation.pictures_THWC)}{when}"
    figure.text(0.515, 0.53, count, fontsize=12, color=INK)
    regions = f"{int(chosen.sum())} regions\nwith a prompt"
    figure.text(0.515, 0.505, regions, fontsize=12, color=GREY, va="top", linespacing=1.3)
    if frame:
        prompts = f"{int(explanation.N_t_G[frame - 1])} prompts in the gap\nbefore this frame"
        figure.text(0.515, 0.425, prompts, fontsize=12, color=PROMPT, va="top", linespacing=1.3)
    if explanation.answers:
        figure.text(0.71, 0.845, "prediction", fontsize=12, color=GREY)
        draw_answers(figure.add_axes((0.71, 0.335, 0.26, 0.5)), explanation, 13)
    if len(explanation.W_t_G):
        _timeline(figure, explanation, frame)
    return figure


def _timeline(figure: Figure, explanation: Explanation, frame: int) -> None:
    figure.text(0.03, 0.19, "$W^t,\\, N^t$", fontsize=17, color=INK)
    text = "change in a gap,\nand its prompts"
    figure.text(0.03, 0.125, text, fontsize=9.5, color=GREY, linespacing=1.2)
    axes = figure.add_axes((0.15, 0.075, 0.82, 0.215))
    draw_gaps(axes, explanation, until=frame)
    axes.axvline(frame, color=INK, lw=1.2, zorder=4)
    axes.plot([frame], [-0.2], marker="^", color=INK, ms=8, clip_on=False, zorder=5)
    frames = len(explanation.pictures_THWC)
    axes.set_xlim(-0.5, frames - 0.5)
    axes.set_xticks(range(frames))
    axes.set_xticklabels([str(number + 1) for number in range(frames)])
    axes.tick_params(axis="x", pad=7)


def _square(figure: Figure, left: float, bottom: float, height: float) -> Axes:
    width = height * _INCHES[1] / _INCHES[0]
    return figure.add_axes((left, bottom, width, height))


def _held(pictures: Iterator[NDArray[np.uint8]]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yields every picture and the number of film pictures that it is shown for."""
    before = None
    for picture in pictures:
        if before is not None:
            yield before, _HELD
        before = picture
    if before is not None:
        yield before, _HELD_AT_END


def _write_mp4(pictures: Iterator[NDArray[np.uint8]], path: Path) -> None:
    options = {"preset": "medium", "crf": "20"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=_RATE, options=options)
        stream.width, stream.height = (round(inches * _DOTS) for inches in _INCHES)
        stream.pix_fmt = "yuv420p"
        for picture, count in _held(pictures):
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(pictures: Iterator[NDArray[np.uint8]], path: Path) -> None:
    images, times = [], []
    for picture, count in _held(pictures):
        image = Image.fromarray(picture)
        size = (_GIF_WIDTH, round(_GIF_WIDTH * image.height / image.width))
        small = image.resize(size, Image.Resampling.LANCZOS)
        images.append(small.quantize(128, dither=Image.Dither.NONE))
        times.append(1000 * count // _RATE)
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=times, loop=0
    )
