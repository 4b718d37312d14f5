"""Finding video files by listing each folder once, without a request per file.

A data root can hold 220,000 files on a network disk, where each request costs a round trip.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from stop_core.datasets.clip import Clip

EXTENSIONS = (
    *(".mp4", ".webm", ".avi", ".mkv"),
    # DiDeMo and people's own cameras
    *(".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".3g2", ".ts", ".mts", ".m2ts"),
    *(".ogv", ".vob", ".asf", ".f4v"),
)
_CONNECTIONS = 16
# Flickr names videos of an unknown kind with a bare dot at the end: "79785633@N03_79013_8bb0df."
_ENDING = re.compile(rf"(?:{'|'.join(map(re.escape, EXTENSIONS))}|\.)+\Z", re.IGNORECASE)


class VideoFiles:
    """The video files below `root/folder`, links followed. Paths are relative to the root.

    People convert videos: a file is found by its name as it is listed, else by its `video_key`.
    """

    def __init__(self, root: Path, folder: str = "") -> None:
        self.root = root
        self.paths = sorted(path for path in _walk(root, folder) if is_video(path))
        self._known = set(self.paths)

    def at(self, path: str) -> str:
        """Returns the file at `path`, or one there with another extension, or else `path`."""
        if path in self._known:
            return path
        return self._only(self._beside.get(video_key(path), []), path) or path

    def named(self, *names: str) -> str | None:
        """Returns the file of the first of `names`, with or without extension, in any folder."""
        for name in names:
            for known, key in ((self._anywhere, name), (self._by_key, video_key(name))):
                if found := self._only(known.get(key, []), name):
                    return found
        return None

    def _only(self, found: list[str], name: str) -> str | None:
        if len(found) > 1:
            raise ValueError(
                f"{name} is there twice below {self.root}, as {found[0]} and {found[1]}: "
                "move one of them elsewhere"
            )
        return found[0] if found else None

    @cached_property
    def _beside(self) -> dict[str, list[str]]:
        return _grouped((video_key(path), path) for path in self.paths)

    @cached_property
    def _anywhere(self) -> dict[str, list[str]]:
        names = ((path.rpartition("/")[2], path) for path in self.paths)
        return _grouped(
            (key, path) for name, path in names for key in {name, name.rpartition(".")[0] or name}
        )

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        return _grouped((video_key(path.rpartition("/")[2]), path) for path in self.paths)


def is_video(path: str) -> bool:
    """Whether a path has the extension of a video file, or ends in a bare dot."""
    return path.lower().endswith((*EXTENSIONS, "."))


def video_key(name: str) -> str:
    """Returns the part that all names of a video have in common.

    "a.mov", "a.mp4", "a.mov.mp4" and "a." are one video, whose file was converted or saved under
    another extension; so are "a%40b" and "a@b", and both Unicode forms of a letter with an accent.
    "A" and "a" are two: YouTube ids can differ only by case. So are files in two folders.
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + _ENDING.sub("", unicodedata.normalize("NFC", unquote(last)))


def missing_clips(root: Path, clips: Iterable[Clip]) -> list[Clip]:
    """Returns the clips whose file is missing, in their order."""
    clips = list(clips)
    folders = list({clip.path.rpartition("/")[0] for clip in clips})

    def files(folder: str) -> set[str]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(root / folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
        return set()

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        names = dict(zip(folders, pool.map(files, folders), strict=True))
    parts = [(clip, *clip.path.rpartition("/")) for clip in clips]
    return [clip for clip, folder, _, name in parts if name not in names[folder]]


def _walk(root: Path, folder: str) -> Iterator[str]:
    """Yields the files below a folder, skipping hidden ones, level by level."""
    level, entered = [folder], set()
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        while level:
            found = pool.map(lambda relative: _look(root / relative), level)
            pairs, level = list(zip(level, found, strict=True)), []
            for relative, (status, folders, files) in pairs:
                if (status.st_dev, status.st_ino) in entered:  # a link that leads back up
                    continue
                entered.add((status.st_dev, status.st_ino))
                start = f"{relative}/" if relative else ""
                level += [start + name for name in folders]
                yield from (start + name for name in files)


def _look(folder: Path) -> tuple[os.stat_result, list[str], list[str]]:
    """Returns the status of a folder, and the sorted names of its folders and files."""
    with os.scandir(folder) as entries:
        shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        # Neither accesses the disk again, unless the entry is a link.
        folders = [entry.name for entry in shown if entry.is_dir()]
        return folder.stat(), folders, [e.name for e in shown if e.is_file()]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return groups
