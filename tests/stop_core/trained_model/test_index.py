"""An index survives a round trip, finds the nearest videos, and refuses another model."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from stop_core.trained_model.index import (
    EMBEDDINGS,
    INDEX_FAILURES,
    IndexInfo,
    SearchIndex,
    write_index,
)

INFO = IndexInfo(identity="abc", model={"tower": "tiny"}, cache=None)


def _rows(vectors_ME: NDArray[np.float32]) -> pa.Table:
    count = len(vectors_ME)
    return pa.table(
        {
            "video": [f"v{number}" for number in range(count)],
            "size": [3] * count,
            "error": pa.array([None] * count, pa.string()),
            "embedding": pa.array(vectors_ME.tolist(), pa.list_(pa.float32())),
        }
    )


@pytest.fixture
def vectors_ME() -> NDArray[np.float32]:
    random = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def test_an_index_survives_a_round_trip_bit_by_bit(
    vectors_ME: NDArray[np.float32], tmp_path: Path
) -> None:
    good = _rows(vectors_ME)
    values = {"video": "bad", "size": 3, "error": "truncated", "embedding": None}
    bad = pa.Table.from_pylist([values], schema=good.schema)
    write_index(tmp_path, pa.concat_tables([bad, good]), INFO)
    index = SearchIndex(tmp_path)
    assert index.info == INFO
    np.testing.assert_array_equal(index.embeddings_ME, vectors_ME)
    assert [video["video"] for video in index.videos] == [f"v{i}" for i in range(20)]
    (failure,) = pq.read_table(tmp_path / INDEX_FAILURES).to_pylist()
    assert (failure["video"], failure["error"]) == ("bad", "truncated")


def test_the_nearest_video_is_the_query_itself_and_scores_decrease(
    vectors_ME: NDArray[np.float32], tmp_path: Path
) -> None:
    write_index(tmp_path, _rows(vectors_ME), INFO)
    index = SearchIndex(tmp_path)
    for number, vector in enumerate(vectors_ME):
        hits = index.nearest(vector, 7)
        assert hits[0] == (number, pytest.approx(1, abs=1e-6))
        scores = [score for _, score in hits]
        assert scores == sorted((vectors_ME @ vector).tolist(), reverse=True)[:7]
    assert len(index.nearest(vectors_ME[0], 99)) == 20


def test_ties_keep_the_order_of_the_index(tmp_path: Path) -> None:
    same = np.tile(np.float32([0.5, 0.5, 0.5, 0.5]), (6, 1))
    write_index(tmp_path, _rows(same), INFO)
    assert [row for row, _ in SearchIndex(tmp_path).nearest(same[0], 6)] == list(range(6))


def test_another_model_is_refused_with_both_identities(
    vectors_ME: NDArray[np.float32], tmp_path: Path
) -> None:
    write_index(tmp_path, _rows(vectors_ME), INFO)
    index = SearchIndex(tmp_path)
    index.check("abc")
    with pytest.raises(ValueError, match=r"abc.*xyz"):
        index.check("xyz")


def test_a_missing_or_damaged_index_is_refused_with_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stop index"):
        SearchIndex(tmp_path)
    (tmp_path / EMBEDDINGS).write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ValueError, match="stop index"):
        SearchIndex(tmp_path)
