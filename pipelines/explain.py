"""Draws the regions, maps, prompts and prediction of a trained STOP for one video."""

if __name__ == "__main__":  # python pipelines/explain.py
    __import__("stop").run_file(__file__)

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_line

from .cli.console import print_result
from .cli.folders import default_output
from .cli.options import OptionalModel
from .cli.video_options import Device
from .cluster.devices import usable_gpus
from .inference.model_choice import ModelChoice

if TYPE_CHECKING:  # importing it takes seconds; --help is fast without
    from stop_core.explain.explanation import Explanation

_FILMS = (".mp4", ".gif")


@dataclass(frozen=True)
class ExplainConfig:
    """Explain the prediction of a trained STOP, as a picture (PNG) and a film (MP4 or GIF).

    The selected regions are outlined on the frames, next to the maps A, M and W^s, the curve of W^t
    with the prompts of every gap, and the prediction.

    Examples:
      stop explain clip.mp4 --checkpoint outputs/runs/NAME
      stop explain clip.mp4 --checkpoint NAME --block 1 --to talk/clip.gif
      stop explain clip.mp4 --checkpoint NAME --beside OTHER
    """

    video: Annotated[Path, tyro.conf.Positional]
    """A video file."""
    model: ModelChoice = field(default_factory=ModelChoice)
    beside: OptionalModel = None
    """A second trained model, to compare: its explanation of the same video is drawn below."""
    device: Device = "auto"
    """Run the model on a GPU of this machine, or on the CPU; auto: on a GPU if there is one."""
    to: Path | None = None
    """The film, .mp4 or .gif; the picture has the same name with .png
    (default: OUTPUT/explained/VIDEO.mp4, in the same subfolders as the video)."""
    block: int | None = None
    """Number of the prompted block, from 1 (default: the last one)."""
    truth: str | None = None
    """The true class, to mark it (default: unknown)."""
    title: str | None = None
    """Heading (default: the name of the file)."""
    pixels: int = 384
    """Edge of the drawn frames, in pixels; the input of the model is not affected."""
    output: Path = field(default_factory=default_output)
    """Folder of the film (by default), the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        if self.to is not None and self.to.suffix.lower() not in _FILMS:
            raise ValueError(f"--to must end in .mp4 or .gif, got {self.to}")
        if not 32 <= self.pixels <= 2048:
            raise ValueError(f"--pixels must be from 32 to 2048, got {self.pixels}")

    @property
    def film(self) -> Path:
        """Path of the film."""
        if self.to:
            return self.to
        # With the same subfolders, because videos in different folders can have the same name.
        video = self.video.resolve()
        here = Path.cwd()
        parts = video.relative_to(here if video.is_relative_to(here) else video.anchor)
        film = self.output / "explained" / parts
        return film if film.suffix == ".mp4" else film.with_name(f"{film.name}.mp4")


def main(config: ExplainConfig) -> None:
    """Explains the video by each model; draws the picture and the film."""
    from stop_core.explain.figure import draw_below, write_film

    models = [config.model]
    models += [] if config.beside is None else [ModelChoice(config.beside)]
    explained = [_explained(config, model) for model in models]
    picture = config.film.with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with appearing(picture) as staging:
        draw_below(explained).save(staging, format="PNG")
    print_result(f"picture: {picture}")
    write_film(explained, config.film)
    print_result(f"film: {config.film}")


def _explained(config: ExplainConfig, model: ModelChoice) -> "Explanation":
    """Explains the video by one model; prints the best answers."""
    from .inference.explained import explain_video

    found = model.found(config.output)
    trained = found.load(usable_gpus(config.device).count > 0)
    title = config.title or config.video.name
    if config.beside is not None and found.checkpoint is not None:
        name = in_line(found.checkpoint.name)
        title = f"{name}: {title}"
        print_result(f"{name}:")
    explained = explain_video(
        trained,
        config.video,
        title=title,
        pixels=config.pixels,
        block=config.block,
        truth=config.truth,
    )
    for answer in explained.answers:
        print_result(f"{answer.probability:7.1%}  {in_line(answer.label)}")
    return explained
