"""Searches videos by a text or by another video, and texts by a video."""

if __name__ == "__main__":  # python pipelines/search.py
    __import__("stop").run_file(__file__)

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from stop_core.cache import FrameCache, View
from stop_core.decoding import DecodeProcess
from stop_core.explain.contact_sheet import Strip, draw_contact_sheet
from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_line
from stop_core.storage.paths import RemotePath, StoragePath, local_file, storage_path
from stop_core.trained_model.index import SearchIndex

from .cli.console import RunError, add_result, print_result, wants_json
from .cli.folders import default_output
from .cli.options import OutputFolder, at_least_one
from .cli.video_options import Device
from .cluster.devices import usable_gpus
from .inference.model_choice import ModelChoice
from .inference.video_list import short_names

if TYPE_CHECKING:
    from stop_core.trained_model.model import TrainedModel

_FRAMES, _PIXELS = 6, 160  # of a video on the sheet


@dataclass(frozen=True)
class SearchConfig:
    """Find the videos of an index by a text or by another video, or texts by a video.

    Prints rank, score (a cosine, from -1 to 1) and name, and draws the videos on a contact sheet
    (with --json, only if --sheet is given).
    The model of the index is used; another model is refused.

    Examples:
      stop search "a dog jumps into a pool" --index outputs/index
      stop search --video clip.mp4 --index outputs/index --top 20
      stop search --video clip.mp4 --texts sentences.txt --checkpoint NAME
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
    model: ModelChoice = field(default_factory=ModelChoice)
    device: Device = "auto"
    """Run the model on a GPU of this machine, or on the CPU; auto: on a GPU if there is one."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder of the index and the picture (by default), the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.video is None):
            raise ValueError("give either a text or --video, not both or none")
        if self.texts is not None and self.video is None:
            raise ValueError("--texts needs --video, the query")
        at_least_one(top=self.top)


def main(config: SearchConfig) -> list[dict[str, Any]]:
    """Searches and prints the results."""
    from stop_core.trained_model.model import embedding_identity

    choice = config.model
    index = None
    if config.texts is None or not choice.is_given:
        index = SearchIndex(config.index or config.output / "index")
    if index and not choice.is_given:
        choice = ModelChoice.from_dict(index.info.model)
    trained = choice.found(config.output).load(usable_gpus(config.device).count > 0)
    if index:
        index.check(embedding_identity(trained))
    query = _query(config, trained)
    if index is None or config.texts is not None:
        found = _nearest_texts(config, trained, query)
    else:
        hits = index.nearest(query, config.top)
        found = [
            {"rank": rank, "score": score, "video": index.videos[row]["video"]}
            for rank, (row, score) in enumerate(hits, 1)
        ]
    for one in found:
        name = in_line(one.get("text") or one["video"])
        print_result(f"{one['rank']:4}  {one['score']:6.3f}  {name}")
    add_result(results=found, sheet=config.sheet)
    if index and config.texts is None and (config.sheet is not None or not wants_json()):
        _draw(config, index, hits)
    return found


def _query(config: SearchConfig, trained: "TrainedModel") -> NDArray[np.float32]:
    if config.video is None:
        if not (config.text or "").strip():
            raise ValueError("the text is empty: describe the videos to find")
        return trained.embed_texts([config.text or ""])[0].cpu().numpy()
    import torch

    clip = trained.preprocessing.decode(config.video)
    return trained.embed_videos(torch.from_numpy(clip.frames)[None])[0].cpu().numpy()


def _nearest_texts(
    config: SearchConfig, trained: "TrainedModel", query_E: NDArray[np.float32]
) -> list[dict[str, Any]]:
    assert config.texts is not None
    try:
        lines = config.texts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RunError(f"--texts {config.texts} cannot be read: {problem}") from problem
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise RunError(f"--texts {config.texts} has no sentence; write one per line")
    scores = trained.embed_texts(texts).cpu().numpy() @ query_E
    order = (-scores).argsort(kind="stable")[: config.top]
    return [
        {"rank": rank, "score": float(scores[row]), "text": texts[row]}
        for rank, row in enumerate(order, 1)
    ]


def _draw(config: SearchConfig, index: SearchIndex, hits: list[tuple[int, float]]) -> None:
    """Draws the contact sheet; a video that is gone has an empty row with the reason."""
    rows = [index.videos[row] for row, _ in hits]
    names = short_names([row["video"] for row in rows])
    strips = [
        Strip(row["video"], f"{found}   {score:.3f}", None)
        if isinstance(found, str)
        else Strip(name, f"{score:.3f}", found)
        for row, name, (_, score), found in zip(
            rows, names, hits, _frames(index, rows, config.fetch), strict=True
        )
    ]
    sheet = draw_contact_sheet(config.text or f"like {config.video}", strips, _FRAMES, _PIXELS)
    path = config.sheet or config.output / "search.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        sheet.save(staging, format="PNG")
    print_result(f"contact sheet: {path}")


def _frames(
    index: SearchIndex, rows: list[dict[str, Any]], fetch: bool
) -> list[NDArray[np.uint8] | str]:
    """Returns some frames of each video, or the reason why there are none."""
    where = index.info.cache
    if where is None:
        with closing(DecodeProcess(_FRAMES, _PIXELS)) as process:
            return [_decoded(process, row["video"], fetch) for row in rows]
    try:
        cache = FrameCache(_path(where, fetch))
        view = View(frames=min(_FRAMES, cache.manifest.config.frames))
        splits = {row["split"] for row in rows} & cache.manifest.counts.keys()
        clips = {split: cache.split(split) for split in splits}
        found: list[NDArray[np.uint8] | str] = []
        for row in rows:  # by id: the cache may have changed
            own, name = clips.get(row["split"]), row["video"]
            if own is None or name not in own.video_ids:
                found.append(f"is no longer in {where}")
            else:
                found.append(own.read([own.video_ids.index(name)], view)[0].numpy())
        return found
    except (OSError, ValueError) as problem:
        return [f"has no frames ({problem})"] * len(rows)


def _decoded(process: DecodeProcess, name: str, fetch: bool) -> NDArray[np.uint8] | str:
    try:
        with local_file(_path(name, fetch)) as path:
            (clip,) = process.decode([path])
    except (OSError, ValueError) as problem:  # for example, gone from its object store
        return str(problem)
    return str(clip) if isinstance(clip, ValueError) else clip.frames.copy()


def _path(text: str, fetch: bool) -> StoragePath:
    """Returns a path of an index, which can be a stranger's: URIs get the user's credentials."""
    path = storage_path(text)
    if isinstance(path, RemotePath) and not fetch:
        raise ValueError("not fetched: give --fetch if you trust the index")
    return path
