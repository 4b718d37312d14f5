"""Embeds videos once, so that texts and other videos find them.

    stop index videos/ --checkpoint outputs/runs/NAME
    stop index --cache outputs/cache/msrvtt --splits test --checkpoint outputs/runs/NAME

The same command goes on after an interruption, and adds what is new in a folder.
"""

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # run as a file: PEP 366
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "pipelines"

import tyro

from .cli.console import print_result
from .cli.errors import RunError
from .cli.options import run_command
from .cli.output import default_output
from .cli.video_options import DecodeOptions, WorkerOptions
from .inference.model_choice import ModelChoice

if TYPE_CHECKING:
    from stop_core.cache import FrameCache
    from stop_core.trained_model.frames import Preprocessing


@dataclass(frozen=True)
class IndexConfig:
    """Embed videos, or the clips of a cache, into an index for `stop search`.

    A video that cannot be decoded is in failures.parquet with the reason. After a kill, the same
    command goes on with what is left; given later, it adds what is new and drops what is gone.

    Examples:
      stop index videos/ --checkpoint outputs/runs/NAME
      stop index --cache outputs/cache/msrvtt --splits test --checkpoint outputs/runs/NAME
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Video files and folders of them; either may be at s3:// or gs://."""
    cache: str | None = None
    """A frame cache in the place of videos, a folder or its s3:// or gs:// URI."""
    splits: tuple[str, ...] = ()
    """Of the cache, only these (default: all)."""
    index: Path | None = None
    """Folder of the index (default: OUTPUT/index)."""
    model: ModelChoice = field(default_factory=ModelChoice)
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    output: Path = field(default_factory=default_output)
    """Folder for what has no folder of its own, and of the MLflow store."""

    def __post_init__(self) -> None:
        if bool(self.videos) == (self.cache is not None):
            raise ValueError("give videos, or --cache: one of the two")
        if self.splits and self.cache is None:
            raise ValueError("--splits belongs to --cache")

    @property
    def folder(self) -> Path:
        """Where the index goes."""
        return self.index or self.output / "index"


def main(config: IndexConfig) -> None:
    """Makes the index, or brings it up to date."""
    from stop_core.cache import FrameCache
    from stop_core.storage.atomic import hash_json
    from stop_core.storage.paths import storage_path
    from stop_core.trained_model.identity import embedding_identity
    from stop_core.trained_model.index import IndexInfo, write_index

    from .inference.job import VideoJob
    from .inference.video_list import list_cached, list_videos
    from .inference.worker import Work

    choice = config.model.found(config.output)
    trained = replace(choice, gpu=False).load()  # here may be no GPU
    identity = embedding_identity(trained)
    data, cache = "", None
    if config.cache is not None:
        cache = str(storage_path(config.cache).resolve())
        frames = FrameCache(cache)
        _refuse_other_frames(frames, trained.preprocessing)
        videos, data = list_cached(frames, config.splits), frames.manifest.data_hash
    else:
        videos = list_videos(config.videos)
    if not videos:
        splits = " and ".join(config.splits) or "any split"
        raise RunError(f"the cache {cache} holds no clip of {splits}: give other --splits")
    work = Work(choice, "embedding", timeout=config.decoding.decode_timeout, cache=cache)
    parts = config.folder / "parts" / hash_json([identity, data])[:16]
    rows = VideoJob(parts, work).run(
        videos, config.workers, retry_failed=config.decoding.retry_failed
    )
    failed = len(rows) - rows["error"].null_count
    if failed == len(rows):
        raise RunError(f"no video could be embedded, for example: {rows['error'][0]}")
    write_index(config.folder, rows, IndexInfo(identity, choice.to_dict(), cache))
    print_result(f"indexed {len(rows) - failed} videos in {config.folder}")
    if failed:
        print_result(f"failed  {failed} videos: see {config.folder / 'failures.parquet'}")
    print_result(f'next    stop search "what to find" --index {shlex.quote(str(config.folder))}')


def _refuse_other_frames(cache: "FrameCache", how: "Preprocessing") -> None:
    """A query by a video is decoded as the model wants it, and so the index has to be."""
    found, size = cache.manifest, cache.manifest.size
    # Of whole frames as large as the square that is shown, the centre is the same crop.
    square = found.config.crop == "center" or size == how.size
    if (found.frames, size, square) == (*how.decoded, how.square):
        return
    there, wanted = _described(found.frames, size, square), _described(*how.decoded, how.square)
    raise RunError(
        f"the cache {cache.path} holds {there}, and the model sees {wanted}: preprocess with "
        f"{_options(how)} into another --cache, or give the videos themselves"
    )


def _described(frames: int, size: int, square: bool) -> str:
    shape = f"squares of {size} pixels" if square else f"whole frames, {size} pixels high or wide"
    return f"{frames} frames of a video ({shape})"


def _options(how: "Preprocessing") -> str:
    frames, size = how.decoded
    return f"--frames {frames} --size {size} --crop {'center' if how.square else 'none'}"


if __name__ == "__main__":
    run_command(IndexConfig, main)
