"""LSMDC 2016 for retrieval: about 118,000 clips from 202 movies, mostly with one sentence each.

The official annotations, and the videos below a folder for each movie, or anywhere:

    <root>/LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_challenge_1000_publictect.csv
    <root>/<movie>/<clip>.avi

A line has six fields with tabs between: the clip, its start and end in the movie (aligned, then
extracted), and the sentence. The 1,000 clips of the challenge are the test.
"""

import re
from collections import defaultdict
from pathlib import Path

from stop_core.datasets.annotations import find_annotation, read_lines, require_root, safe_name
from stop_core.datasets.clip import Clip, Split, captioned_clip
from stop_core.datasets.listing import Listing
from stop_core.datasets.video_files import VideoFiles, video_key

_FILES: tuple[tuple[str, Split], ...] = (
    ("LSMDC16_annos_training.csv", "train"),
    ("LSMDC16_annos_val.csv", "val"),
    ("LSMDC16_challenge_1000_publictect.csv", "test"),
)
_LAYOUT = f"{', '.join(name for name, _ in _FILES)} and the videos as <movie>/<clip>.avi"
_FIELDS = 6


def read_lsmdc(root: Path) -> list[Clip]:
    """Lists the training, validation and test clips.

    Raises:
        FileNotFoundError: if the root or an annotation file is not there.
        ValueError: if a line cannot be read, or a clip is in two splits; the message names file
            and line.
    """
    require_root(root, _LAYOUT)
    files = VideoFiles(root)
    listing = Listing()
    for name, split in _FILES:
        path = find_annotation(root, name, layout=_LAYOUT)
        for clip, (where, sentences) in _read_sentences(path).items():
            movie = movie_of(video_key(clip))
            file = files.named(clip) or f"{movie}/{clip}.avi"
            listing.add(captioned_clip(clip, file, split, movie, sentences, where), where)
    return listing.finish()


def movie_of(clip: str) -> str:
    """Returns the movie that a clip was cut from: the name without its two times."""
    time = r"\d\d\.\d\d\.\d\d\.\d+"
    return re.sub(rf"_{time}-{time}$", "", clip)


def _read_sentences(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Returns where each clip is first listed, and its sentences."""
    found: dict[str, tuple[str, list[str]]] = {}
    sentences: dict[str, list[str]] = defaultdict(list)
    for where, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) != _FIELDS:
            raise ValueError(
                f"{where}: expected {_FIELDS} fields with tabs between, found {len(fields)}; "
                "unpack the annotation files afresh"
            )
        clip = safe_name(fields[0].strip(), where)
        sentences[clip].append(fields[-1])
        found.setdefault(clip, (where, sentences[clip]))
    return found
