"""Lists the videos of a command line: files, folders, and URIs of either."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

from stop_core.cache import FrameCache
from stop_core.datasets.video_files import VideoFiles, is_video
from stop_core.storage.paths import RemotePath, StoragePath, storage_path


@dataclass(frozen=True)
class Video:
    """One video in its present version: a file that changes is another video."""

    name: str
    """Absolute path or URI of a file, or the id of a cached clip."""
    size: int = 0
    mtime_ns: int = 0
    split: str = ""
    number: int = -1
    """Number of a cached clip in its split."""


def list_videos(given: Sequence[str]) -> list[Video]:
    """Returns the given files, and the videos in the given folders, in order and without repeats.

    A given file can have any name; in a folder, only files with the ending of a video are taken.
    """
    if not given:
        raise ValueError("give at least one video, or a folder of videos")
    found: dict[str, Video] = {}
    for text in given:
        videos = list(_below(text))
        if not videos:
            raise ValueError(f"there is no video in {text}; give another folder")
        for video in videos:
            found.setdefault(video.name, video)
    return list(found.values())


def short_names(names: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """Returns display names: the path inside a given folder, or else the name of the file.

    If two of these were equal, all are the paths below the innermost folder that has all videos.
    """
    roots = [f"{storage_path(text).resolve()}/" for text in given]
    short = [
        next((name.removeprefix(root) for root in roots if name.startswith(root)), Path(name).name)
        for name in names
    ]
    if len(set(short)) == len(set(names)):
        return short
    common = commonprefix(list(names)).rpartition("/")[0]  # noqa: RUF071 - names can be URIs
    return [name.removeprefix(f"{common}/") for name in names]


def list_cached(cache: FrameCache, splits: Sequence[str]) -> list[Video]:
    """Returns the clips of some splits of a cache, or of all splits, in its order."""
    chosen = splits or tuple(cache.manifest.counts)
    return [
        Video(name, split=split, number=number)
        for split in chosen
        for number, name in enumerate(cache.split(split).video_ids)
    ]


def _below(text: str) -> Iterator[Video]:
    path = storage_path(text)
    if isinstance(path, RemotePath):
        if path.is_file():
            yield _file(path)
            return
        for name, found in sorted(path.listing()):
            if found is not None and is_video(name):
                yield Video(str(path / name), found.st_size, found.st_mtime_ns)
        return
    path = path.resolve()
    if path.is_dir():
        for relative in VideoFiles(path).paths:
            yield _file(path / relative)
    elif path.exists():
        yield _file(path)
    else:
        raise FileNotFoundError(f"there is no video or folder {text}")


def _file(path: StoragePath) -> Video:
    status = path.stat()
    return Video(str(path), status.st_size, status.st_mtime_ns)
