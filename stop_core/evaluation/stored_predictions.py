"""Scores of every test video from stored tables of predictions, for statistics over videos."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stop_core.evaluation.statistics import VideoScores
from stop_core.storage.paths import StoragePath, local_file

RESULT = "result.json"
"""File name in the folder of a finished training run."""

_MEASURE = re.compile(
    r"(?:(dsl|qb_norm)_)?(t2v|v2t)_(?:r(\d+)|mean_rank)"
    r"|(?:(base|novel)_)?top(\d+)|mean_class|harmonic_mean"
)


def reranked_name(rerank: str) -> str:
    """Returns the beginning of the names of re-ranked measures: qb-norm becomes qb_norm."""
    return rerank.replace("-", "_")


def read_scores(files: Sequence[StoragePath], measures: Sequence[str]) -> dict[str, VideoScores]:
    """Reads the `predictions.parquet` of several trainings of one configuration, one per seed.

    Measures are, for example, "test/top1", "test/harmonic_mean" and "test/v2t_mean_rank". The order
    of the rows in a file has no effect. Raises ValueError if a file has no data for a measure or
    other videos than the first one; OSError if it cannot be read.
    """
    tables = [_read(file) for file in files]
    return {measure: _join(files, tables, measure) for measure in measures}


def _read(file: StoragePath) -> pd.DataFrame:
    try:
        with local_file(file) as here:
            return pd.read_parquet(here)
    except (OSError, ValueError) as problem:  # pyarrow raises these
        found = f"cannot be read ({problem})" if file.exists() else "are missing"
        raise OSError(
            f"the predictions {file} {found}; delete {file.parent / RESULT} and run the same "
            "command again, which computes them from the last checkpoint"
        ) from problem


def _join(
    files: Sequence[StoragePath], tables: Sequence[pd.DataFrame], measure: str
) -> VideoScores:
    split, name = measure.split("/")
    videos = []
    for file, table in zip(files, tables, strict=True):
        own = table[table["split"] == split] if "split" in table else table
        try:
            videos.append(_videos(own, name))
        except KeyError as problem:
            raise ValueError(f"{file} has no {measure}: the column {problem} is missing") from None
        if videos[-1].empty:
            raise ValueError(f"{file} has no {measure}: there are no rows of the {split} split")
        same = videos[-1].index.equals(videos[0].index)
        if not same or not (videos[-1]["weight"] == videos[0]["weight"]).all():
            raise ValueError(
                f"{file} and {files[0]} have different {split} videos and cannot form one row; "
                "delete the folder of the wrong one and train it again"
            )
    groups = videos[0]["group"].to_numpy() if "group" in videos[0] else None
    return VideoScores(
        np.stack([one["value"].to_numpy(np.float64) for one in videos]),
        videos[0]["weight"].to_numpy(np.float64),
        groups,
        videos[0].index.to_numpy(),
        harmonic=name == "harmonic_mean",
    )


def _videos(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Returns one row per video: the sum of the scores of its queries, and their number."""
    found = _MEASURE.fullmatch(name)
    if found is None:
        raise ValueError(f"the measure {name} has no scores per video")
    rerank, direction, recall, part, top = found.groups()
    if direction:
        rows = rows[rows["direction"] == direction]
    by_group = {"mean_class": "label", "harmonic_mean": "part"}.get(name)
    most = 1 if by_group else recall or top
    rank = rows[f"{rerank}_rank" if rerank else "rank"]
    value = rank if most is None else rank <= int(most)
    # All measures have the same videos, so that one draw serves them: others weigh nothing.
    weight = rows["part"].eq(part) if part else pd.Series(1, rows.index)
    columns = {"value": value.astype(float) * weight, "weight": weight.astype(int)}
    videos = pd.DataFrame(columns).groupby(rows["video_id"]).sum().sort_index()
    if by_group:
        groups = rows.groupby("video_id")[by_group].first()
        videos["group"] = groups.eq("novel").astype(int) if by_group == "part" else groups
    return videos
