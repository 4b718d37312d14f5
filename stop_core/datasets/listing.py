"""The clips of a dataset: one per video, under whichever of its names it is listed."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from stop_core.datasets.clip import Clip
from stop_core.datasets.video_files import video_key

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
        """Adds a clip, or its captions to the clip of the same video.

        Args:
            clip: its label is ignored: classes are compared by name.
            where: its location in the annotation, for messages.
            again: whether one name can be listed several times, with a caption each time.
            name: the listed name, where the id of the clip is another one.
            unused: whether the list has the clip in none of our splits; it is only compared.

        Raises:
            ValueError: if the video is listed already, and this is no further name of it.
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
