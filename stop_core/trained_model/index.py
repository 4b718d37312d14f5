"""A search index: the embeddings of videos in one Parquet file, and the model that made them.

    <index>/embeddings.parquet   one row per video: its name, and a vector of E float32
    <index>/failures.parquet     the videos without a vector, and the reasons
    <index>/parts/               the finished parts of `stop index`

The metadata holds the identity of the model, because vectors of different models cannot be
compared. The vectors have length 1, so a score is a cosine.

Shapes: M videos, N queries, E channels of the joint text-video space.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stop_core.storage.atomic import appearing, hash_json
from stop_core.storage.documents import build, parse_json, read_parquet, shown, shown_text
from stop_core.storage.paths import StoragePath, local_file

INDEX_FORMAT = 2
EMBEDDINGS = "embeddings.parquet"
INDEX_FAILURES = "failures.parquet"
_INFO = b"stop.index"
_DIGEST = "sha256"
VIDEO_COLUMNS = {
    "video": pa.string(),
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    "split": pa.string(),
    "number": pa.int64(),
}
"""The columns that identify a version of a video."""


@dataclass(frozen=True)
class IndexInfo:
    """Metadata of an index."""

    identity: str
    """The model's `embedding_identity`."""
    model: dict[str, Any]
    """The model, as `ModelChoice.to_dict` returns it."""
    cache: str | None
    """The frame cache that the videos are clips of."""


class SearchIndex:
    """A finished index, read into memory: 2 kB a video for ViT-B/32; ValueError if damaged."""

    def __init__(self, folder: StoragePath) -> None:
        path = folder / EMBEDDINGS
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no index at {folder}, which has no {EMBEDDINGS}: make one with "
                f"`stop index VIDEOS --index {shlex.quote(str(folder))}`"
            )
        try:
            with local_file(path) as here:
                self._read(here)
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise ValueError(
                f"the index {path} cannot be read ({shown_text(problem)}): make it again with "
                "`stop index`"
            ) from problem
        self.folder = folder

    def _read(self, file: Path) -> None:
        schema = pq.read_schema(file)
        values = parse_json((schema.metadata or {}).get(_INFO, b"null").decode())
        version = values.pop("format_version", None) if isinstance(values, dict) else None
        if shown(version) != str(INDEX_FORMAT):  # True would be equal to 1
            raise ValueError(f"it has version {shown(version)}, not {INDEX_FORMAT}")
        digest = values.pop(_DIGEST, None)
        self.info = build(IndexInfo, values)
        vector = schema.field("embedding").type if "embedding" in schema.names else None
        if not isinstance(vector, pa.FixedSizeListType) or vector.value_type != pa.float32():
            raise ValueError(f"its column embedding is {vector}")
        wanted = [
            pa.field(name, kind, nullable=False)
            for name, kind in {**VIDEO_COLUMNS, "embedding": vector}.items()
            if name == "video" or name in schema.names
        ]
        table = read_parquet(file, pa.schema(wanted))
        flat = table["embedding"].combine_chunks().flatten().to_numpy()
        self.embeddings_ME: NDArray[np.float32] = flat.reshape(len(table), vector.list_size)
        self.videos: list[dict[str, Any]] = table.drop_columns(["embedding"]).to_pylist()
        if digest != _digest(self.info, self.videos, flat):
            raise ValueError("its content differs from its checksum")

    def check(self, identity: str) -> None:
        """Raises ValueError if queries with this `identity` were embedded by another model."""
        if identity != self.info.identity:
            raise ValueError(
                f"the index {self.folder} was made with the model {self.info.identity}, and its "
                f"embeddings cannot be compared with those of {identity}: leave the model options "
                "out to use the model of the index, or make another index with this one"
            )

    def nearest(self, query_E: NDArray[np.float32], most: int) -> list[tuple[int, float]]:
        """Returns row and cosine of the `most` videos that are nearest; ties in index order."""
        score_M = self.embeddings_ME @ query_E
        order = np.argsort(-score_M, kind="stable")[:most]
        return [(int(row), float(score_M[row])) for row in order]


def write_index(folder: StoragePath, rows: pa.Table, info: IndexInfo) -> None:
    """Writes an index of `rows` with `error`, `embedding` and other columns; embeddings last."""
    is_good = rows["error"].is_null()
    bad = rows.filter(pc.invert(is_good)).drop_columns(["embedding"])
    good = rows.filter(is_good)
    vectors = good["embedding"].combine_chunks()
    width = len(vectors[0])
    good = good.drop_columns(["error", "embedding"]).append_column(
        "embedding", pa.FixedSizeListArray.from_arrays(vectors.flatten(), width)
    )
    videos = good.drop_columns(["embedding"]).to_pylist()
    digest = _digest(info, videos, vectors.flatten().to_numpy())
    metadata = {_INFO: json.dumps({"format_version": INDEX_FORMAT, **vars(info), _DIGEST: digest})}
    tables = {INDEX_FAILURES: bad, EMBEDDINGS: good.replace_schema_metadata(metadata)}
    for name, table in tables.items():
        with appearing(folder / name) as staging:
            pq.write_table(table, staging)


def _digest(info: IndexInfo, videos: list[dict[str, Any]], vectors: NDArray[np.float32]) -> str:
    return hash_json([vars(info), videos, hashlib.sha256(vectors.tobytes()).hexdigest()])
