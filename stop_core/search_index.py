"""An index of videos: their embeddings in one Parquet file, and whose embeddings they are.

    <index>/embeddings.parquet   a row a video: its name, and a vector of E float32
    <index>/failures.parquet     the videos that have no vector, and why
    <index>/parts/               what is done so far, while it is made

The model's identity stands in the metadata: a vector of another model would be comparable to
nothing in it. The vectors have length 1, so a score is a cosine.

Shapes: M videos, N queries, E channels of the joint text-video space.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stop_core.cache.files import appearing

FORMAT_VERSION = 1
EMBEDDINGS = "embeddings.parquet"
FAILURES = "failures.parquet"
_INFO = b"stop.index"


@dataclass(frozen=True)
class IndexInfo:
    """What an index says of itself."""

    identity: str
    """Of the model, as `embedding_identity` gives it."""
    model: dict[str, Any]
    """Where the model is, as `ModelChoice` writes it."""
    cache: str | None
    """Where the videos are clips of a frame cache."""
    width: int
    """E."""


@dataclass(frozen=True)
class Hit:
    """One video that was found."""

    row: int
    score: float


class SearchIndex:
    """A finished index, read into memory: 2 kB a video for ViT-B/32.

    Raises:
        FileNotFoundError: if there is none at `folder`.
        ValueError: if it is damaged, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / EMBEDDINGS
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no index at {folder}: make one with `stop index VIDEOS --index {folder}`"
            )
        try:
            table = pq.read_table(path)
            self.info = _info(table.schema.metadata or {})
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            self.embeddings_ME: NDArray[np.float32] = flat.reshape(-1, self.info.width)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as problem:
            reason = " ".join(str(problem).split())
            raise ValueError(
                f"{path} is no index that can be read ({reason}): make it again"
            ) from (problem)
        self.folder = folder
        self.videos: list[dict[str, Any]] = table.drop_columns(["embedding"]).to_pylist()

    def check(self, identity: str) -> None:
        """Refuses queries of another model.

        Raises:
            ValueError: if `identity` is not that of the model that made the index.
        """
        if identity != self.info.identity:
            raise ValueError(
                f"the index {self.folder} was made with the model {self.info.identity} and the "
                f"query is of {identity}, whose embeddings mean something else: leave the model "
                "out, which takes that of the index, or make an index with this one"
            )

    def nearest(self, query_E: NDArray[np.float32], most: int) -> list[Hit]:
        """The `most` videos with the greatest cosine to the query; ties in the index's order."""
        score_M = self.embeddings_ME @ query_E
        order = np.argsort(-score_M, kind="stable")[:most]
        return [Hit(int(row), float(score_M[row])) for row in order]


def write_index(folder: Path, rows: Sequence[dict[str, Any]], info: IndexInfo) -> None:
    """Writes an index in the place of one that is there; the embeddings appear last.

    Args:
        folder: of the index.
        rows: `video`, `size`, `mtime_ns`, `split`, `number`, `error` and `embedding` of each.
        info: what to say of it.
    """
    names = [pa.field("video", pa.string(), nullable=False), pa.field("split", pa.string())]
    file = [pa.field(name, pa.int64()) for name in ("number", "size", "mtime_ns")]
    vector = pa.field("embedding", pa.list_(pa.float32(), info.width), nullable=False)
    reason = pa.field("error", pa.string(), nullable=False)
    said = {"format_version": FORMAT_VERSION, **vars(info)}
    schema = pa.schema([*names, *file, vector], metadata={_INFO: json.dumps(said)})
    good = [row for row in rows if row["error"] is None]
    bad = [row for row in rows if row["error"] is not None]
    for name, chosen, kind in (
        (FAILURES, bad, pa.schema([*names, *file, reason])),
        (EMBEDDINGS, good, schema),
    ):
        with appearing(folder / name) as staging:
            pq.write_table(pa.Table.from_pylist(chosen, schema=kind), staging)


def _info(metadata: dict[bytes, bytes]) -> IndexInfo:
    values = json.loads(metadata[_INFO])
    if (version := values.pop("format_version")) != FORMAT_VERSION:
        raise ValueError(f"it is of version {version}, and this program reads {FORMAT_VERSION}")
    return IndexInfo(**values)
