"""The folder of a dataset: its files, and its clips, one per video, whichever name is listed."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from stop_core.datasets.clip import NO_LABEL, Clip, Split, tidied
from stop_core.datasets.video_files import VideoFiles, video_key

_log = logging.getLogger(__name__)


class Listing:
    """Collects the clips that a reader finds, in their order.

    Official lists name videos twice: 62 of DiDeMo's 2,069 validation and test videos are listed
    under two extensions. Such a video is one clip with all of its captions. A video that is listed
    twice under one name, or in two splits, classes or sources, is refused with both places.
    """

    def __init__(self) -> None:
        self._clips: dict[str, Clip] = {}
        self._places: dict[str, tuple[str, str, dict[str, str]]] = {}
        self._doubles: dict[str, str] = {}

    def finish(self) -> list[Clip]:
        """Returns the clips under the names that were listed first; logs how many had two."""
        if self._doubles:
            _log.warning(
                "second names of listed videos: %d, such as %s of %s; each such video is one clip "
                "with all of its captions",
                len(self._doubles),
                *next(iter(self._doubles.items())),
            )
        return list(self._clips.values())

    def add(
        self, clip: Clip, where: str, *, again: bool = False, name: str = "", unused: bool = False
    ) -> None:
        """Adds a clip, or its captions to that of the same video; ValueError if listed twice.

        Args:
            clip: its label is ignored: classes are compared by name.
            where: its location in the annotation, for messages.
            again: whether one name can be listed several times, with a caption each time.
            name: the listed name, where the id of the clip is another one.
            unused: whether the list has the clip in none of our splits; it is only compared.
        """
        key, name = video_key(clip.video_id), name or clip.video_id
        values = {"split": "unused" if unused else clip.split, "class": clip.class_name}
        values["source"] = video_key(clip.source)
        if key not in self._places:
            self._places[key] = where, name, values
            if not unused:
                self._clips[key] = clip
            return
        first_where, first_name, first_values = self._places[key]
        called = "" if name == first_name else f" as {first_name}"
        others = [field for field in values if values[field] != first_values[field]]
        if others or (name == first_name and not again):
            other = "".join(
                f", with the {key} {first_values[key]!r} and not {values[key]!r}" for key in others
            )
            raise ValueError(
                f"{where}: {name} is listed twice, first in {first_where}{called}{other}; remove "
                "one of the two lines"
            )
        if called:
            self._doubles[name] = first_name
        if not unused:
            first = self._clips[key]
            self._clips[key] = replace(first, captions=first.captions + clip.captions)


def number_classes(clips: Sequence[Clip]) -> list[Clip]:
    """Returns the clips with labels that index their sorted class names."""
    names = sorted({clip.class_name for clip in clips})
    labels = {class_name: label for label, class_name in enumerate(names)}
    return [replace(clip, label=labels[clip.class_name]) for clip in clips]


class DataRoot(Listing):
    """A data root; the readers of all datasets list their clips in one.

    `layout` describes the files that it should hold, for messages. `videos` is the folder of the
    videos, if all are in one.
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
        """Returns the first file of these names in the root or a folder just below it, if any."""
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

        Its file is called `video_id` or `other_name`, in any folder; `default` is its path, if
        there is no such file. Raises ValueError if it has no caption, or is listed already.
        """
        path = self.files.named(video_id, *filter(None, [other_name])) or default
        tidy = tuple(filter(None, map(tidied, captions)))
        if not tidy:
            raise ValueError(
                f"{where}: {video_id} has no caption; unpack the annotation files afresh"
            )
        self.add(Clip(video_id, path, split, NO_LABEL, "", source, tidy), where)
