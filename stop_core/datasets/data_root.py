"""The folder of a dataset: its annotation files, its videos, and the clips that are listed."""

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from stop_core.datasets.clip import NO_LABEL, Clip, Split, tidied
from stop_core.datasets.listing import Listing
from stop_core.datasets.video_files import VideoFiles


class DataRoot(Listing):
    """A data root; the readers of all datasets list their clips in one.

    Args:
        root: the folder.
        layout: describes the files that it should hold, for messages.
        videos: the folder of the videos, if all are in one.

    Raises:
        FileNotFoundError: if a folder is not there.
    """

    def __init__(self, root: Path, layout: str, videos: str = "") -> None:
        super().__init__()
        self.root = root
        self._layout = layout
        self._videos = videos
        if not root.is_dir():
            raise FileNotFoundError(
                f"the data root {root} is not a folder: give --data-root the folder that holds "
                f"{layout}"
            )
        self.require_folder(videos)

    def require_folder(self, folder: str) -> None:
        """Raises FileNotFoundError unless the root holds `folder`."""
        if not (self.root / folder).is_dir():
            raise FileNotFoundError(
                f"{self.root} holds no folder {folder}: unpack the dataset so that {self.root} "
                f"holds {self._layout}"
            )

    @cached_property
    def files(self) -> VideoFiles:
        """The video files."""
        return VideoFiles(self.root, self._videos)

    def look_for(self, *names: str) -> Path | None:
        """Returns the annotation file in the root, or in a folder just below it; None without one.

        Args:
            names: possible names of the file; the first that exists is used.

        Raises:
            ValueError: if a name exists twice.
        """
        with os.scandir(self.root) as entries:
            below = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
        folders = [self.root, *(self.root / name for name in sorted(below))]
        for name in names:
            found = [folder / name for folder in folders if (folder / name).is_file()]
            if len(found) > 1:
                raise ValueError(f"{name} is there twice, as {found[0]} and {found[1]}: keep one")
            if found:
                return found[0]
        return None

    def find(self, *names: str) -> Path:
        """Like `look_for`, but raises FileNotFoundError if no such file exists."""
        path = self.look_for(*names)
        if path is None:
            raise FileNotFoundError(
                f"there is no {' or '.join(names)} in {self.root} or in a folder just below it: "
                f"it should hold {self._layout}"
            )
        return path

    def add_captioned(
        self,
        where: str,
        video_id: str,
        split: Split,
        captions: Iterable[str],
        *,
        source: str,
        default: str,
        other_name: str = "",
    ) -> None:
        """Adds a clip of a retrieval dataset, with its captions `tidied`.

        Args:
            where: its location in the annotation.
            video_id: the name of its file, which can be in any folder.
            split: its split.
            captions: its sentences.
            source: the longer video that it was cut from.
            default: its path, if there is no such file.
            other_name: another possible name of its file.

        Raises:
            ValueError: if it has no caption, or is listed already.
        """
        path = self.files.named(video_id, *filter(None, [other_name])) or default
        tidy = tuple(filter(None, map(tidied, captions)))
        if not tidy:
            raise ValueError(
                f"{where}: {video_id} has no caption; unpack the annotation files afresh"
            )
        self.add(Clip(video_id, path, split, NO_LABEL, "", source, tidy), where)
