"""An index of videos: their embeddings in one Parquet file, and whose embeddings they are.

    <index>/embeddings.parquet   a row a video: its name, and a vector of E float32
    <index>/failures.parquet     the videos that have no vector, and why
    <index>/parts/               what is done so far, while it is made

The model's identity stands in the metadata: a vector of another model would be comparable to
nothing in it. The vectors have length 1, so a score is a cosine.

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
from stop_core.storage.documents import (
    build,
    parse_json,
    read_parquet,
    require_file,
    shown,
    shown_text,
)

INDEX_FORMAT = 2
EMBEDDINGS = "embeddings.parquet"
INDEX_FAILURES = "failures.parquet"
_INFO = b"stop.index"
_DIGEST = "sha256"
_COLUMNS = {
    **{name: pa.string() for name in ("video", "split")},
    **{name: pa.int64() for name in ("size", "mtime_ns", "number")},
}


@dataclass(frozen=True)
class IndexInfo:
    """What an index says of itself."""

    identity: str
    """Of the model, as `embedding_identity` gives it."""
    model: dict[str, Any]
    """Where the model is, as `ModelChoice` writes it."""
    cache: str | None
    """Where the videos are clips of a frame cache."""


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
                f"there is no index at {folder}, which has no {EMBEDDINGS}: make one with "
                f"`stop index VIDEOS --index {shlex.quote(str(folder))}`"
            )
        try:
            schema = pq.read_schema(require_file(path))
            self.info, digest = _info(schema.metadata or {})
            vector = schema.field("embedding").type if "embedding" in schema.names else None
            if not isinstance(vector, pa.FixedSizeListType) or vector.value_type != pa.float32():
                raise ValueError(f"its column embedding is {vector}")
            there = [name for name in _COLUMNS if name == "video" or name in schema.names]
            wanted = [pa.field(name, _COLUMNS[name], nullable=False) for name in there]
            wanted.append(pa.field("embedding", vector, nullable=False))
            table = read_parquet(path, pa.schema(wanted))
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            self.embeddings_ME: NDArray[np.float32] = flat.reshape(len(table), vector.list_size)
            self.videos: list[dict[str, Any]] = table.drop_columns(["embedding"]).to_pylist()
            if digest != _digest(self.info, self.videos, flat):
                raise ValueError("its content is not what was written")
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise ValueError(
                f"{path} is no index that can be read ({shown_text(problem)}): make it again"
            ) from problem
        self.folder = folder

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


def write_index(folder: Path, rows: pa.Table, info: IndexInfo) -> None:
    """Writes an index in the place of one that is there; the embeddings appear last.

    Args:
        folder: of the index.
        rows: `error`, `embedding` and what else is to be kept of each video.
        info: what to say of it.
    """
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
    said = json.dumps({"format_version": INDEX_FORMAT, **vars(info), _DIGEST: digest})
    for name, table in (
        (INDEX_FAILURES, bad),
        (EMBEDDINGS, good.replace_schema_metadata({_INFO: said})),
    ):
        with appearing(folder / name) as staging:
            pq.write_table(table, staging)


def _digest(info: IndexInfo, videos: list[dict[str, Any]], vectors: NDArray[np.float32]) -> str:
    """Over all that a search reads of an index."""
    return hash_json([vars(info), videos, hashlib.sha256(vectors.tobytes()).hexdigest()])


def _info(metadata: dict[bytes, bytes]) -> tuple[IndexInfo, object]:
    values = parse_json(metadata.get(_INFO, b"null").decode())
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if shown(version) != str(INDEX_FORMAT):  # True would be equal to 1
        raise ValueError(
            f"it is of version {shown(version)}, and this program reads {INDEX_FORMAT}"
        )
    digest = values.pop(_DIGEST, None)
    return build(IndexInfo, values), digest
