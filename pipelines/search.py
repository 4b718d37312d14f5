"""Finds videos by a text or by another video, and texts by a video.

stop search "a dog jumps into a pool" --index outputs/index
stop search --video clip.mp4 --index outputs/index
stop search --video clip.mp4 --texts sentences.txt --checkpoint outputs/runs/NAME
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # run as a file: PEP 366
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "pipelines"

import tyro

from stop_core.storage.escaping import in_line

from .cli.console import print_result, say
from .cli.errors import RunError
from .cli.options import run_command
from .cli.output import default_output
from .inference.model_choice import ModelChoice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stop_core.explain.contact_sheet import Strip
    from stop_core.storage.paths import StoragePath
    from stop_core.trained_model.index import Hit, SearchIndex
    from stop_core.trained_model.model import TrainedModel

    from .inference.video_list import Video

_FRAMES, _PIXELS = 6, 160  # of a video on the sheet


@dataclass(frozen=True)
class SearchConfig:
    """Find the videos of an index by a text or by another video, or texts by a video.

    Prints rank, score (a cosine, from -1 to 1) and name, and draws what was found on a contact
    sheet. The model is that of the index; another one is refused.

    Examples:
      stop search "a dog jumps into a pool" --index outputs/index
      stop search --video clip.mp4 --index outputs/index --top 20
      stop search --video clip.mp4 --texts sentences.txt --checkpoint outputs/runs/NAME
    """

    text: Annotated[str | None, tyro.conf.Positional] = None
    """What to find, in a sentence."""
    index: Path | None = None
    """Folder that `stop index` made (default: OUTPUT/index)."""
    video: Path | None = None
    """A video in the place of the text: what is like it?"""
    texts: Path | None = None
    """With --video: a file with a sentence a line, of which the nearest are told."""
    top: int = 10
    """How many are told."""
    sheet: Path | None = None
    """Picture of the videos that were found (default: OUTPUT/search.png)."""
    fetch: bool = False
    """For the picture, fetch what the index names at s3:// or gs://, with your account there."""
    json: bool = False
    """Print JSON lines; the sheet is drawn if --sheet is given."""
    model: ModelChoice = field(default_factory=ModelChoice)
    output: Path = field(default_factory=default_output)
    """Folder for what has no name of its own, and of the MLflow store."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.video is None):
            raise ValueError("give a text to find, or --video: one of the two")
        if self.texts is not None and self.video is None:
            raise ValueError("--texts needs --video: the video to find them by")
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")

    @property
    def folder(self) -> Path:
        """Where the index is."""
        return self.index or self.output / "index"


def main(config: SearchConfig) -> list[dict[str, Any]]:
    """Searches, and tells what was found."""
    from stop_core.trained_model.identity import embedding_identity
    from stop_core.trained_model.index import SearchIndex

    if config.texts is not None and config.model.is_given:
        trained = config.model.found(config.output).load()
        return _tell(_nearest_texts(config, trained), config)
    index = SearchIndex(config.folder)
    choice = config.model
    if not choice.is_given:  # an index that was made with a GPU is searched without one too
        choice = replace(ModelChoice.from_dict(index.info.model), gpu=choice.gpu)
    trained = choice.found(config.output).load()
    index.check(embedding_identity(trained))
    if config.texts is not None:
        return _tell(_nearest_texts(config, trained), config)
    hits = index.nearest(_query(config, trained), config.top)
    found = [
        {"rank": rank, "score": hit.score, "video": index.videos[hit.row]["video"]}
        for rank, hit in enumerate(hits, 1)
    ]
    _tell(found, config)
    if config.sheet is not None or not config.json:
        _draw(config, index, hits)
    return found


def _query(config: SearchConfig, trained: "TrainedModel") -> "NDArray[np.float32]":
    """The embedding of the text or the video, [E]."""
    if config.text is not None:
        if not config.text.strip():
            raise ValueError("the text is empty: say what to find")
        return trained.embed_texts([config.text])[0].cpu().numpy()
    import torch

    assert config.video is not None
    if not config.video.is_file():
        raise FileNotFoundError(f"there is no video {config.video}")
    process = trained.preprocessing.decoder()
    try:
        (clip,) = process.decode([config.video])
        if isinstance(clip, ValueError):
            raise RunError(f"{config.video} cannot be decoded: {clip}")
        return trained.embed_videos(torch.from_numpy(clip.frames.copy())[None])[0].cpu().numpy()
    finally:
        process.close()


def _nearest_texts(config: SearchConfig, trained: "TrainedModel") -> list[dict[str, Any]]:
    """The sentences of the file that are nearest to the video."""
    assert config.texts is not None
    try:
        lines = config.texts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RunError(f"--texts {config.texts} cannot be read: {problem}") from problem
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise RunError(f"--texts {config.texts} holds no sentence; write one a line")
    scores = trained.embed_texts(texts).cpu().numpy() @ _query(config, trained)
    order = (-scores).argsort(kind="stable")[: config.top]
    return [
        {"rank": rank, "score": float(scores[row]), "text": texts[row]}
        for rank, row in enumerate(order, 1)
    ]


def _tell(found: list[dict[str, Any]], config: SearchConfig) -> list[dict[str, Any]]:
    for one in found:
        if config.json:
            print_result(json.dumps(one, ensure_ascii=False))
        else:
            name = in_line(one.get("text") or one["video"])
            print_result(f"{one['rank']:4}  {one['score']:6.3f}  {name}")
    return found


def _draw(config: SearchConfig, index: "SearchIndex", hits: "Sequence[Hit]") -> None:
    from stop_core.explain.contact_sheet import draw_contact_sheet
    from stop_core.storage.atomic import appearing

    heading = config.text or f"like {config.video}"
    sheet = draw_contact_sheet(heading, _strips(index, hits, config.fetch), _FRAMES, _PIXELS)
    path = config.sheet or config.output / "search.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        sheet.save(staging, format="PNG")
    (say if config.json else print_result)(f"contact sheet: {path}")


def _strips(index: "SearchIndex", hits: "Sequence[Hit]", fetch: bool) -> "list[Strip]":
    """Frames of the videos as they are now: a file may be gone since it was indexed."""
    from stop_core.explain.contact_sheet import Strip

    from .inference.video_list import Video, short_names

    videos = [Video(**_named(index.videos[hit.row])) for hit in hits]
    strips = []
    names = short_names([video.name for video in videos])
    frames = _frames(index, videos, fetch)
    for hit, video, name, found in zip(hits, videos, names, frames, strict=True):
        score = f"{hit.score:.3f}"
        if isinstance(found, str):
            strips.append(Strip(video.name, f"{found}   {score}", None))
        else:
            strips.append(Strip(name, score, found))
    return strips


def _frames(
    index: "SearchIndex", videos: "Sequence[Video]", fetch: bool
) -> "list[NDArray[np.uint8] | str]":
    """Some frames of each video, or why there are none."""
    from stop_core.decoding import DecodeProcess
    from stop_core.storage.paths import local_file

    if index.info.cache is not None:
        return _cached_frames(index.info.cache, videos, fetch)
    process = DecodeProcess(_FRAMES, _PIXELS)
    found: list[NDArray[np.uint8] | str] = []
    try:
        for video in videos:
            try:
                with local_file(_path(video.name, fetch)) as path:
                    (clip,) = process.decode([path])
            except (OSError, ValueError) as problem:  # it was on an object store, and is gone
                found.append(str(problem))
                continue
            found.append(str(clip) if isinstance(clip, ValueError) else clip.frames.copy())
    finally:
        process.close()
    return found


def _path(text: str, fetch: bool) -> "StoragePath":
    """What an index names. It may be a stranger's, and a store is sent the user's account."""
    from stop_core.storage.paths import RemotePath, storage_path

    path = storage_path(text)
    if isinstance(path, RemotePath) and not fetch:
        raise ValueError("not fetched: give --fetch if you trust the index")
    return path


def _cached_frames(
    where: str, videos: "Sequence[Video]", fetch: bool
) -> "list[NDArray[np.uint8] | str]":
    """The same of a cache, in which a clip may have another number by now, or be gone."""
    from stop_core.cache import FrameCache, View

    try:
        cache = FrameCache(_path(where, fetch))
        view = View(frames=min(_FRAMES, cache.manifest.frames))
        splits = {name: cache.split(name) for name in cache.manifest.counts}
        numbers = {
            (name, clip): number
            for name in {video.split for video in videos} & set(splits)
            for number, clip in enumerate(splits[name].video_ids)
        }
        return [
            splits[video.split].read([number], view)[0].numpy()
            if (number := numbers.get((video.split, video.name))) is not None
            else f"is no longer in {where}"
            for video in videos
        ]
    except (OSError, ValueError) as problem:
        return [f"has no frames ({problem})"] * len(videos)


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {"name" if key == "video" else key: value for key, value in row.items()}


if __name__ == "__main__":
    run_command(SearchConfig, main)
