"""Searches videos by a text or by another video, and texts by a video.

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

    from stop_core.cache.reading import CachedClips
    from stop_core.explain.contact_sheet import Strip
    from stop_core.storage.paths import StoragePath
    from stop_core.trained_model.index import Hit, SearchIndex
    from stop_core.trained_model.model import TrainedModel

    from .inference.video_list import Video

_FRAMES, _PIXELS = 6, 160  # of a video on the sheet


@dataclass(frozen=True)
class SearchConfig:
    """Find the videos of an index by a text or by another video, or texts by a video.

    Prints rank, score (a cosine, from -1 to 1) and name, and draws the videos on a contact sheet.
    The model of the index is used; another model is refused.

    Examples:
      stop search "a dog jumps into a pool" --index outputs/index
      stop search --video clip.mp4 --index outputs/index --top 20
      stop search --video clip.mp4 --texts sentences.txt --checkpoint outputs/runs/NAME
    """

    text: Annotated[str | None, tyro.conf.Positional] = None
    """A sentence that describes the videos to find."""
    index: Path | None = None
    """Folder that `stop index` made (default: OUTPUT/index)."""
    video: Path | None = None
    """A video instead of the text: finds similar ones."""
    texts: Path | None = None
    """With --video: a file with one sentence per line; prints the most similar ones."""
    top: int = 10
    """Number of results."""
    sheet: Path | None = None
    """Picture of the results (default: OUTPUT/search.png)."""
    fetch: bool = False
    """For the picture, download the videos at s3:// and gs:// that the index names, with your
    credentials."""
    json: bool = False
    """Print JSON lines, and draw the picture only if --sheet is given."""
    model: ModelChoice = field(default_factory=ModelChoice)
    output: Path = field(default_factory=default_output)
    """Folder of the index and the picture (by default), the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.video is None):
            raise ValueError("give either a text or --video, not both or none")
        if self.texts is not None and self.video is None:
            raise ValueError("--texts needs --video, the query")
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")

    @property
    def folder(self) -> Path:
        """Folder of the index."""
        return self.index or self.output / "index"


def main(config: SearchConfig) -> list[dict[str, Any]]:
    """Searches and prints the results."""
    from stop_core.trained_model.identity import embedding_identity
    from stop_core.trained_model.index import SearchIndex

    choice = config.model
    index = SearchIndex(config.folder) if config.texts is None or not choice.is_given else None
    if index and not choice.is_given:  # the model of the index, on the device of this command
        choice = replace(ModelChoice.from_dict(index.info.model), gpu=choice.gpu)
    trained = choice.found(config.output).load()
    if index:
        index.check(embedding_identity(trained))
    if index is None or config.texts is not None:
        return _print_hits(_nearest_texts(config, trained), config)
    hits = index.nearest(_query(config, trained), config.top)
    found = [
        {"rank": rank, "score": hit.score, "video": index.videos[hit.row]["video"]}
        for rank, hit in enumerate(hits, 1)
    ]
    _print_hits(found, config)
    if config.sheet is not None or not config.json:
        _draw(config, index, hits)
    return found


def _query(config: SearchConfig, trained: "TrainedModel") -> "NDArray[np.float32]":
    """Returns the embedding of the text or the video, [E]."""
    if config.text is not None:
        if not config.text.strip():
            raise ValueError("the text is empty: describe the videos to find")
        return trained.embed_texts([config.text])[0].cpu().numpy()
    import torch

    assert config.video is not None
    clip = trained.preprocessing.decode(config.video)
    return trained.embed_videos(torch.from_numpy(clip.frames)[None])[0].cpu().numpy()


def _nearest_texts(config: SearchConfig, trained: "TrainedModel") -> list[dict[str, Any]]:
    """Returns the sentences of the file that are most similar to the video."""
    assert config.texts is not None
    try:
        lines = config.texts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RunError(f"--texts {config.texts} cannot be read: {problem}") from problem
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise RunError(f"--texts {config.texts} has no sentence; write one per line")
    scores = trained.embed_texts(texts).cpu().numpy() @ _query(config, trained)
    order = (-scores).argsort(kind="stable")[: config.top]
    return [
        {"rank": rank, "score": float(scores[row]), "text": texts[row]}
        for rank, row in enumerate(order, 1)
    ]


def _print_hits(found: list[dict[str, Any]], config: SearchConfig) -> list[dict[str, Any]]:
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
    """Returns the rows of the sheet; a video that is gone has an empty one."""
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
    """Returns some frames of each video, or the reason why there are none."""
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
            except (OSError, ValueError) as problem:  # for example, gone from its object store
                found.append(str(problem))
                continue
            found.append(str(clip) if isinstance(clip, ValueError) else clip.frames.copy())
    finally:
        process.close()
    return found


def _path(text: str, fetch: bool) -> "StoragePath":
    """Returns a path of an index, which can be a stranger's: URIs get the user's credentials."""
    from stop_core.storage.paths import RemotePath, storage_path

    path = storage_path(text)
    if isinstance(path, RemotePath) and not fetch:
        raise ValueError("not fetched: give --fetch if you trust the index")
    return path


def _cached_frames(
    where: str, videos: "Sequence[Video]", fetch: bool
) -> "list[NDArray[np.uint8] | str]":
    """Returns the same of a cache that may have changed: clips are found by their id."""
    from stop_core.cache import FrameCache, View

    try:
        cache = FrameCache(_path(where, fetch))
        view = View(frames=min(_FRAMES, cache.manifest.config.frames))
        wanted = {video.split for video in videos}
        clips: dict[tuple[str, str], tuple[CachedClips, int]] = {
            (split, name): (cache.split(split), number)
            for split in cache.manifest.counts
            if split in wanted
            for number, name in enumerate(cache.split(split).video_ids)
        }
        found: list[NDArray[np.uint8] | str] = []
        for video in videos:
            if clip := clips.get((video.split, video.name)):
                found.append(clip[0].read([clip[1]], view)[0].numpy())
            else:
                found.append(f"is no longer in {where}")
        return found
    except (OSError, ValueError) as problem:
        return [f"has no frames ({problem})"] * len(videos)


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {"name" if key == "video" else key: value for key, value in row.items()}


if __name__ == "__main__":
    run_command(SearchConfig, main)
