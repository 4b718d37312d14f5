"""A session refuses a missing device, and keeps the checkpoints that are needed to resume."""

from pathlib import Path

import pytest
from ray.train import Checkpoint

from pipelines.training.checkpoints import list_checkpoints, write_checkpoint
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


def test_checkpoints_that_ray_never_registered_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Path] = []  # Ray keeps the last two, and is one report late

    def report(metrics: dict[str, float], *, checkpoint: Checkpoint, **_: object) -> None:
        assert all(path.exists() for path in registered[-2:])
        registered.append(Path(checkpoint.path))

    monkeypatch.setattr("ray.train.report", report)
    for number in range(3):
        write_checkpoint(tmp_path, _writes(f"before {number}"))
    registered += list_checkpoints(tmp_path)[:2]
    session = RayTrainSession(tmp_path)
    for number in range(5):
        session.report({}, _writes(str(number)))
    left = [(path / "state").read_text() for path in list_checkpoints(tmp_path)]
    assert left == ["0", "1", "2", "3", "4"]


def test_a_reserved_gpu_that_is_missing_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OSError, match=r"a GPU was reserved on .*--device cpu"):
        FolderSession(tmp_path).device(gpu=True)
