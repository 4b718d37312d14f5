"""A session refuses a missing device, and keeps the checkpoints that are needed to resume."""

from pathlib import Path

import pytest

from pipelines.training.checkpoints import list_checkpoints
from pipelines.training.session import FolderSession, RayTrainSession


def _writes(text: str):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        (folder / "state").write_text(text)

    return write


def test_the_latest_checkpoint_is_returned_and_old_ones_are_removed(tmp_path: Path) -> None:
    session = FolderSession(tmp_path / "checkpoints")
    assert session.latest() is None
    for number in range(12):
        session.report({"epoch": float(number)}, _writes(str(number)))
    latest = FolderSession(tmp_path / "checkpoints").latest()
    assert latest is not None
    assert (latest / "state").read_text() == "11"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_report_without_a_checkpoint_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    session = FolderSession(tmp_path)
    session.report({"a": 1.0}, _writes("x"))
    session.report({"a": 2.0}, None)
    assert session.latest() == tmp_path / "checkpoint_000000"


def test_ray_train_gets_all_reports_and_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, float]] = []
    monkeypatch.setattr("ray.train.report", reported.append)
    session = RayTrainSession(tmp_path)
    for number in range(3):
        session.report({"epoch": number}, _writes(str(number)))
    session.report({"epoch": 3}, None)  # of another rank
    assert [one["epoch"] for one in reported] == [0, 1, 2, 3]
    left = [(path / "state").read_text() for path in list_checkpoints(tmp_path)]
    assert left == ["1", "2"]
    assert RayTrainSession(tmp_path).latest() == list_checkpoints(tmp_path)[-1]


def test_a_reserved_gpu_that_is_missing_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OSError, match=r"a GPU was reserved on .*--device cpu"):
        FolderSession(tmp_path).device(gpu=True)
