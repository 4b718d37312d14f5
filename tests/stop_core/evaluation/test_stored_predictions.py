"""Missing or damaged predictions are refused with their path and a remedy."""

from pathlib import Path

import pytest

from stop_core.evaluation.stored_predictions import read_scores


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_unreadable_predictions_are_refused_with_their_path_and_the_remedy(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "predictions.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OSError, match=rf"{file} .*; delete {tmp_path}/result.json and run"):
        read_scores([file], ["test/top1"])
