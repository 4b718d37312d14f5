"""Embeds videos into an index, to search them by texts and by other videos."""

if __name__ == "__main__":  # python pipelines/index.py
    __import__("stop").run_file(__file__)

import shlex
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from stop_core.cache import FrameCache
from stop_core.storage.atomic import hash_json
from stop_core.storage.paths import StoragePath, storage_path
from stop_core.trained_model.frames import Preprocessing
from stop_core.trained_model.index import IndexInfo, write_index

from .cli.console import RunError, print_result
from .cli.folders import default_output
from .cli.options import OptionalFolder, OutputFolder
from .cli.video_options import DecodeOptions, WorkerOptions
from .inference.model_choice import ModelChoice
from .inference.video_list import list_cached, list_videos


@dataclass(frozen=True)
class IndexConfig:
    """Embed videos, or the clips of a cache, into an index for `stop search`.

    A video that cannot be decoded is in failures.parquet with the reason. After an interruption,
    the same command resumes. Later, it adds new videos and removes those that are gone.

    Examples:
      stop index videos/ --checkpoint outputs/runs/NAME
      stop index --cache outputs/cache/msrvtt --splits test --checkpoint NAME
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Video files and folders of them, local or at s3:// or gs://."""
    cache: str | None = None
    """A frame cache instead of videos: a folder, or its s3:// or gs:// URI."""
    splits: tuple[str, ...] = ()
    """Splits of the cache (default: all)."""
    index: OptionalFolder = None
    """Folder of the index (default: OUTPUT/index)."""
    model: ModelChoice = field(default_factory=ModelChoice)
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    output: OutputFolder = field(default_factory=default_output)
    """Folder of the index (by default), the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        if bool(self.videos) == (self.cache is not None):
            raise ValueError("give either videos or --cache, not both or none")
        if self.splits and self.cache is None:
            raise ValueError("--splits needs --cache")

    @property
    def folder(self) -> StoragePath:
        """Folder of the index."""
        return self.index or self.output / "index"


def main(config: IndexConfig) -> None:
    """Makes or updates the index."""
    from stop_core.trained_model.model import embedding_identity

    from .inference.job import VideoJob
    from .inference.stages import Work

    choice = config.model.found(config.output)
    trained = choice.load()
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
        raise RunError(f"the cache {cache} has no clip of {splits}: give other --splits")
    how, timeout = trained.preprocessing, config.decoding.decode_timeout
    work = Work(choice, how, "embedding", timeout=timeout, cache=cache)
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


def _refuse_other_frames(cache: FrameCache, how: Preprocessing) -> None:
    # A video as a query is decoded as for the training; the index has to match.
    found, size = cache.manifest.config, cache.manifest.config.size
    # The centre of a whole frame is the same crop if the short side equals the model's input.
    square = found.crop == "center" or size == how.size
    shape, wanted = (found.frames, size, square), (*how.decoded, how.square)
    if (*shape, found.sampling) == (*wanted, how.sampling):
        return
    frames, short_side = how.decoded
    raise RunError(
        f"the cache {cache.path} has {_shape(*shape, found.sampling)}, and the model needs "
        f"{_shape(*wanted, how.sampling)}: preprocess with --frames {frames} --size "
        f"{short_side} --crop {'center' if how.square else 'none'} --sampling {how.sampling} into "
        "another --cache, or give the video files"
    )


def _shape(frames: int, size: int, square: bool, sampling: str) -> str:
    crop = f"squares of {size} pixels" if square else f"whole frames, short side {size} pixels"
    return f"{frames} frames per video ({crop}, sampled as {sampling})"
