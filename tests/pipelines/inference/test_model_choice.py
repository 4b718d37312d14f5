"""A model is named by a folder, a run, or the beginning of its name; never by a sweep trial."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.console import RunError
from pipelines.inference.model_choice import ModelChoice
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised

_LONG_AGO = 1_600_000_000.0


def _run(
    output: Path, name: str, split: str | None = "test", age: float = 0, **values: Any
) -> Path:
    """Makes the folder of a run, which is finished if `split` is given."""
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    if split:
        result = recognised(ExperimentConfig(), [True], output / "results")
        metrics = {"val/top1": 0.5, f"{split}/top1": 0.5, "best_epoch": 1.0}
        metrics |= {"trainable_parameters": 9.0, **values.pop("metrics", {})}
        replace(result, folder=str(folder), metrics=metrics, **values).save()
        os.utime(folder / "result.json", (_LONG_AGO - age, _LONG_AGO - age))
    return folder


def _found(name: str, output: Path) -> Path | None:
    return ModelChoice(Path(name)).found(output).checkpoint


def test_the_beginning_of_a_name_selects_the_newest_tested_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path, "motion-stop-seed0-old", age=9)
    newest = _run(tmp_path, "motion-stop-seed0-new", age=5)
    trial = _run(tmp_path, "motion-stop-seed0-new-untested-mine", split="val", age=1)
    _run(tmp_path, "motion-stop-seed0-unfinished", split=None)
    other = _run(tmp_path, "motion-stop-seed01-new", age=2)
    _run(tmp_path, "motion-stop-static-seed0-new", age=7)
    assert _found("motion-stop-seed0", tmp_path) == newest
    printed = capsys.readouterr()
    assert str(newest) in printed.err
    assert not printed.out  # stdout is for the rows of a prediction
    assert _found("motion-stop-seed01", tmp_path) == other
    assert _found(trial.name, tmp_path) == trial  # its full name was given
    assert _found(str(trial), tmp_path / "elsewhere") == trial


def test_every_beginning_of_a_unique_name_selects_it(tmp_path: Path) -> None:
    run = _run(tmp_path, "hmdb51-fold1-stop-seed0-abcd")
    for length in range(1, len(run.name) + 1):
        assert _found(run.name[:length], tmp_path) == run


@pytest.mark.parametrize(
    "differs", [{"data_hash": "e" * 64}, {"method": "vpt-deep"}, {"seed": 1}], ids=str
)
def test_an_ambiguous_beginning_is_refused_with_the_names(
    tmp_path: Path, differs: dict[str, Any]
) -> None:
    first, second = _run(tmp_path, "a-b1", age=1), _run(tmp_path, "a-b2", age=2, **differs)
    _run(tmp_path, "a-b3", age=3)  # same settings as the first, but older
    for beginning in ("a", "a-b"):
        with pytest.raises(RunError, match="2 trainings with different data") as refusal:
            _found(beginning, tmp_path)
        assert str(refusal.value).splitlines()[1:] == [f"  {first.name}", f"  {second.name}"]
    assert _found(second.name, tmp_path) == second


def test_an_untrained_run_is_never_the_newest_training(tmp_path: Path) -> None:
    trained = _run(tmp_path, "motion-stop-seed0-trained", age=9)
    untrained = _run(tmp_path, "motion-stop-seed0-none", metrics={"best_epoch": 0.0})
    assert _found("motion-stop", tmp_path) == trained
    assert _found(untrained.name, tmp_path) == untrained
    with pytest.raises(RunError, match=r"\n  motion-stop-seed0-none was not trained"):
        _found("motion-stop-seed0-n", tmp_path)
    clip = _run(tmp_path, "motion-zero", metrics={"best_epoch": 0.0, "trainable_parameters": 0.0})
    assert _found("motion-z", tmp_path) == clip  # it has nothing to train


def test_an_unknown_name_is_refused_with_the_searched_folder(tmp_path: Path) -> None:
    _run(tmp_path, "motion-stop-seed0-trial", split="val")
    _run(tmp_path, "motion-stop-seed0-begun", split=None)
    with pytest.raises(
        RunError, match=r"no folder motion-stop-seed0, and no .* in \S*/runs whose"
    ) as refusal:
        _found("motion-stop-seed0", tmp_path)
    assert "begun is not finished: it has no result.json" in str(refusal.value)
    assert "trial was not trained (--epochs 0), or not tested" in str(refusal.value)


def test_a_local_folder_comes_before_the_name_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tmp_path, "mine-new")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _found("mine", tmp_path) == tmp_path / "mine"
