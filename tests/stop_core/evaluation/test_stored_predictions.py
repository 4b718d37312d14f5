"""Missing or damaged predictions are refused with their path and a remedy."""

from pathlib import Path

import pandas as pd
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


def _write(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_gone_and_damaged_predictions_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="are missing"):
        read_scores([tmp_path / "absent"], ["test/top1"])
    (tmp_path / "damaged").write_bytes(b"x")
    with pytest.raises(OSError, match="cannot be read"):
        read_scores([tmp_path / "damaged"], ["test/top1"])


def test_one_training_or_several_have_a_value_a_weight_and_a_group_a_video(tmp_path: Path) -> None:
    files = [
        _write(
            tmp_path / f"{seed}" / "predictions.parquet",
            video_id=["b", "a", "c"],
            rank=[1, 6, 2 + seed],
            label=[1, 0, 1],
        )
        for seed in range(2)
    ]
    for count in (1, 2):
        found = read_scores(files[:count], ["test/top1", "test/top2", "test/mean_class"])
        assert found["test/top1"].values_SM.tolist() == [[0, 1, 0]] * count
        assert found["test/top2"].values_SM.tolist() == [[0, 1, 1], [0, 1, 0]][:count]
        assert found["test/top1"].weights_M.tolist() == [1, 1, 1]
        assert found["test/top1"].groups_M is None
        groups = found["test/mean_class"].groups_M
        assert groups is not None
        assert groups.tolist() == [0, 1, 1]


def test_trainings_with_other_numbers_of_queries_belong_to_no_row(tmp_path: Path) -> None:
    files = []
    for name, videos in (("one", ["a", "b", "b"]), ("two", ["a", "a", "b"])):
        columns = {"video_id": videos, "rank": [1, 2, 3], "direction": ["t2v"] * 3}
        files.append(_write(tmp_path / name / "predictions.parquet", **columns))
    for measure in ("test/t2v_r1", "test/t2v_mean_rank"):
        assert read_scores(files[:1], [measure])[measure].weights_M.tolist() == [1, 2]
        with pytest.raises(ValueError, match=r"two.* and .*one.* different test videos"):
            read_scores(files, [measure])
    columns = {"video_id": ["a", "c", "c"], "rank": [1, 2, 3], "direction": ["t2v"] * 3}
    files[1] = _write(tmp_path / "other" / "predictions.parquet", **columns)
    with pytest.raises(ValueError, match=r"other.* and .*one.* different test videos"):
        read_scores(files, ["test/t2v_r1"])


@pytest.mark.parametrize("measure", ["test/top1", "test/t2v_r1", "test/mean_class"])
def test_a_measure_without_its_column_is_refused_by_name(measure: str, tmp_path: Path) -> None:
    file = _write(tmp_path / "one" / "predictions.parquet", video_id=["a"], label=[0])
    with pytest.raises(ValueError, match=f"has no {measure}: the column '"):
        read_scores([file], [measure])
    empty = _write(tmp_path / "two" / "predictions.parquet", video_id=["a"], split=["val"])
    with pytest.raises(ValueError, match=r"is missing|no rows of the test split"):
        read_scores([empty], [measure])


def test_a_measure_is_that_of_its_split(tmp_path: Path) -> None:
    splits, ranks = ["val", "test", "train"], [1, 2, 3]
    file = _write(tmp_path / "predictions", split=splits, video_id=["a"] * 3, rank=ranks)
    for split, rank in zip(splits, ranks, strict=True):
        found = read_scores([file], [f"{split}/top{top}" for top in (1, 2, 3)])
        values = [scores.values_SM.tolist() for scores in found.values()]
        assert values == [[[float(rank <= top)]] for top in (1, 2, 3)]


def test_a_later_file_without_rows_of_the_split_is_the_one_that_is_named(tmp_path: Path) -> None:
    full = _write(tmp_path / "full", split=["test", "val"], video_id=["a", "a"], rank=[1, 1])
    half = _write(tmp_path / "half", split=["val"], video_id=["a"], rank=[1])
    for files in ([full, half], [half, full]):
        with pytest.raises(ValueError, match=f"^{half} has no test/top1: there are no rows of the"):
            read_scores(files, ["test/top1"])


def test_the_videos_of_another_part_have_no_value_and_no_weight(tmp_path: Path) -> None:
    parts, videos, ranks = ["base", "base", "novel"], ["a", "b", "c"], [1, 2, 1]
    file = _write(tmp_path / "predictions", part=parts, video_id=videos, rank=ranks)
    found = read_scores([file], ["test/base_top1", "test/novel_top1"])
    for name, value, weight in (("base", [1, 0, 0], [1, 1, 0]), ("novel", [0, 0, 1], [0, 0, 1])):
        assert found[f"test/{name}_top1"].values_SM.tolist() == [value]
        assert found[f"test/{name}_top1"].weights_M.tolist() == weight
