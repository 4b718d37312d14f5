"""Laws of an index: it comes back as written, finds the nearest, and refuses another model."""

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


def test_it_comes_back_bit_by_bit(vectors_ME: NDArray[np.float32], tmp_path: Path) -> None:
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


def test_the_nearest_is_the_video_itself_and_scores_fall(
    vectors_ME: NDArray[np.float32], tmp_path: Path
) -> None:
    write_index(tmp_path, _rows(vectors_ME), INFO)
    index = SearchIndex(tmp_path)
    for number, vector in enumerate(vectors_ME):
        hits = index.nearest(vector, 7)
        assert hits[0].row == number
        assert hits[0].score == pytest.approx(1, abs=1e-6)
        scores = [hit.score for hit in hits]
        assert scores == sorted((vectors_ME @ vector).tolist(), reverse=True)[:7]
    assert len(index.nearest(vectors_ME[0], 99)) == 20


def test_equal_videos_are_found_in_their_order(tmp_path: Path) -> None:
    same = np.tile(np.float32([0.5, 0.5, 0.5, 0.5]), (6, 1))
    write_index(tmp_path, _rows(same), INFO)
    assert [hit.row for hit in SearchIndex(tmp_path).nearest(same[0], 6)] == list(range(6))


def test_another_model_is_refused_by_both_names(
    vectors_ME: NDArray[np.float32], tmp_path: Path
) -> None:
    write_index(tmp_path, _rows(vectors_ME), INFO)
    index = SearchIndex(tmp_path)
    index.check("abc")
    with pytest.raises(ValueError, match=r"abc.*xyz"):
        index.check("xyz")


def test_what_is_no_index_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stop index"):
        SearchIndex(tmp_path)
    (tmp_path / EMBEDDINGS).write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ValueError, match="stop index"):
        SearchIndex(tmp_path)
