"""Which model is meant: a folder, a run's name, or the beginning of one; never a sweep's trial."""

import json
import os
from pathlib import Path

import pytest

from pipelines.command_line import RunError
from pipelines.model_choice import ModelChoice

_LONG_AGO = 1_600_000_000.0


def _run(output: Path, name: str, split: str | None = "test", age: float = 0) -> Path:
    """The folder of a run: finished, if a split was measured."""
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    if split:
        result = folder / "result.json"
        result.write_text(json.dumps({"metrics": {"val/top1": 0.5, f"{split}/top1": 0.5}}))
        os.utime(result, (_LONG_AGO - age, _LONG_AGO - age))
    return folder


def _found(name: str, output: Path) -> Path | None:
    return ModelChoice(Path(name)).found(output).checkpoint


def test_the_beginning_of_a_name_is_the_newest_finished_and_tested_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path, "motion1-stop-seed0-old", age=9)
    newest = _run(tmp_path, "motion1-stop-seed0-new", age=5)
    trial = _run(tmp_path, "motion1-stop-seed0-new-untested-mine", split="val", age=1)
    _run(tmp_path, "motion1-stop-seed0-unfinished", split=None)
    other = _run(tmp_path, "motion1-stop-seed01-new", age=2)
    _run(tmp_path, "motion1-stop-static-seed0-new", age=7)
    assert _found("motion1-stop-seed0", tmp_path) == newest
    said = capsys.readouterr()
    assert str(newest) in said.err
    assert not said.out  # where the rows of a prediction go
    assert _found("motion1-stop-seed01", tmp_path) == other
    assert _found(trial.name, tmp_path) == trial  # that very one was asked for
    assert _found(str(trial), tmp_path / "elsewhere") == trial


def test_a_name_of_trainings_on_different_clips_is_refused(tmp_path: Path) -> None:
    """Of two sets of one's own, which are both called "folder"."""
    runs = [_run(tmp_path, f"folder1-stop-seed0-{data}") for data in ("cats", "balls", "more")]
    for run, data in zip(runs, ("cats", "balls", "balls"), strict=True):
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | {"data_hash": data}))
    with pytest.raises(RunError, match="2 different sets of clips") as refusal:
        _found("folder1-stop-seed0", tmp_path)
    assert str(runs[0]) in str(refusal.value)
    assert _found(runs[0].name, tmp_path) == runs[0]


def test_a_name_that_no_training_has_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    _run(tmp_path, "motion1-stop-seed0-new-untested", split="val")
    with pytest.raises(
        RunError, match=r"no folder motion1-stop-seed0, and no .* in \S*/runs whose"
    ):
        _found("motion1-stop-seed0", tmp_path)


def test_a_folder_here_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path, "mine-new")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _found("mine", tmp_path) == tmp_path / "mine"
