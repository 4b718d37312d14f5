"""What a stored table of predictions says of every test video, for statistics over videos."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stop_core.evaluation.statistics import VideoScores

RESULT = "result.json"
"""File name in the folder of a finished training run."""

_TOP = re.compile(r"top(\d+)")
_RETRIEVAL = re.compile(r"(t2v|v2t)_(?:r(\d+)|(mean_rank))")


def read_scores(files: Sequence[Path], measures: Sequence[str]) -> dict[str, VideoScores]:
    """Reads the `predictions.parquet` of several trainings of one configuration.

    The order of the rows of a file does not matter: videos are sorted by their ids.

    Args:
        files: one a seed.
        measures: for example "test/top1", "test/mean_class", "test/t2v_r5", "test/v2t_mean_rank".

    Raises:
        ValueError: if a file lacks a measure, or was measured on other videos than the first; the
            message names the file.
        OSError: if a file cannot be read.
    """
    tables = [_read(file) for file in files]
    return {measure: _join(files, tables, measure) for measure in measures}


def _read(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as problem:  # pyarrow's errors are one of them
        found = f"cannot be read ({problem})" if file.exists() else "are missing"
        raise OSError(
            f"the predictions {file} {found}; delete {file.with_name(RESULT)} and give the same "
            "command again, which takes them from the last checkpoint"
        ) from problem


def _join(files: Sequence[Path], tables: Sequence[pd.DataFrame], measure: str) -> VideoScores:
    """One measure of all seeds."""
    split, name = measure.split("/")
    videos = []
    for file, table in zip(files, tables, strict=True):
        own = table[table["split"] == split] if "split" in table else table
        try:
            videos.append(_videos(own, name))
        except KeyError as problem:
            raise ValueError(f"{file} cannot tell {measure}: it has no column {problem}") from None
        if videos[-1].empty:
            raise ValueError(f"{file} cannot tell {measure}: it has no rows of the {split} split")
        same = videos[-1].index.equals(videos[0].index)
        if not same or not (videos[-1]["weight"] == videos[0]["weight"]).all():
            raise ValueError(
                f"{file} and {files[0]} are not of the same {split} videos, so they belong to no "
                "common row; delete the folder of the wrong one and train it again"
            )
    groups = videos[0]["group"].to_numpy() if "group" in videos[0] else None
    return VideoScores(
        np.stack([one["value"].to_numpy(np.float64) for one in videos]),
        videos[0]["weight"].to_numpy(np.float64),
        groups,
    )


def _videos(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row a video: the sum of what its queries scored, and their number."""
    if found := _RETRIEVAL.fullmatch(name):
        direction, most, _ = found.groups()
        rows = rows[rows["direction"] == direction]
        value = rows["rank"] if most is None else rows["rank"] <= int(most)
        return _by_video(rows, value)
    if found := _TOP.fullmatch(name):
        return _by_video(rows, rows["rank"] <= int(found.group(1)))
    if name == "mean_class":
        videos = _by_video(rows, rows["rank"] <= 1)
        return videos.assign(group=rows.groupby("video_id")["label"].first())
    raise ValueError(f"no intervals are known for the measure {name}")


def _by_video(rows: pd.DataFrame, value: "pd.Series[Any]") -> pd.DataFrame:
    by_video = value.astype(float).groupby(rows["video_id"])
    return pd.DataFrame({"value": by_video.sum(), "weight": by_video.count()}).sort_index()
