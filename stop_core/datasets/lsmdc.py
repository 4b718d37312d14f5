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

from stop_core.datasets.annotations import read_lines, safe_name
from stop_core.datasets.clip import Clip, Split
from stop_core.datasets.data_root import DataRoot
from stop_core.datasets.video_files import video_key

_FILES: tuple[tuple[str, Split], ...] = (
    ("LSMDC16_annos_training.csv", "train"),
    ("LSMDC16_annos_val.csv", "val"),
    ("LSMDC16_challenge_1000_publictect.csv", "test"),
)
_LAYOUT = f"{', '.join(name for name, _ in _FILES)} and the videos as <movie>/<clip>.avi"
_FIELDS = 6


def read_lsmdc(root: Path) -> list[Clip]:
    """Lists the training, validation and test clips."""
    data = DataRoot(root, _LAYOUT)
    for name, split in _FILES:
        places: dict[str, str] = {}
        sentences: dict[str, list[str]] = defaultdict(list)
        for where, line in read_lines(data.find(name)):
            fields = line.split("\t")
            if len(fields) != _FIELDS:
                raise ValueError(
                    f"{where}: expected {_FIELDS} fields with tabs between, found {len(fields)}; "
                    "unpack the annotation files afresh"
                )
            clip = safe_name(fields[0].strip(), where)
            places.setdefault(clip, where)
            sentences[clip].append(fields[-1])
        for clip, where in places.items():
            movie = movie_of(video_key(clip))
            path = f"{movie}/{clip}.avi"
            data.add_captioned(where, clip, split, sentences[clip], source=movie, default=path)
    return data.finish()


def movie_of(clip: str) -> str:
    """Returns the movie that a clip was cut from: the name without its two times."""
    time = r"\d\d\.\d\d\.\d\d\.\d+"
    return re.sub(rf"_{time}-{time}$", "", clip)
