"""Predictions that are gone or damaged are named, with a way to have them again."""

from pathlib import Path

import pytest

from stop_core.evaluation.stored_predictions import read_scores


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_predictions_that_cannot_be_read_are_named_with_what_to_do(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "predictions.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OSError, match=rf"{file} .*; delete {tmp_path}/result.json and run"):
        read_scores([file], ["test/top1"])
