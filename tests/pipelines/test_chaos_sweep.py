"""The sweep for the kills has all features that complicate a resume; differences are found."""

from dataclasses import replace
from pathlib import Path

from pipelines.sweeping.read_space import read_space
from pipelines.sweeping.trials import Trial
from tests.pipelines.chaos_sweep import SPACE, _differences

CURVE = [{"epoch": 1.0, "val/top1": 0.5, "step_seconds": 0.1}]
TRIAL = Trial(3, {"alpha": 0.5}, 0, "finished", CURVE, {"val/top1": 0.5}, "", "run")


def test_space_learns_from_trials_stops_them_and_has_conditions(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    space = read_space(path)
    assert space.algorithm == "tpe"
    assert (space.trials or 0) > space.startup_trials
    assert space.scheduler is not None
    assert any(distribution.when for distribution in space.search.values())


def test_trials_are_compared_except_for_their_times() -> None:
    slower = [{**CURVE[0], "step_seconds": 9.0}]
    assert _differences(TRIAL, replace(TRIAL, curve=slower)) == []
    assert _differences(TRIAL, replace(TRIAL, curve=[])) == ["curve"]
    assert _differences(TRIAL, replace(TRIAL, state="stopped early")) == ["state"]
    assert _differences(TRIAL, replace(TRIAL, drawn={"alpha": 0.6}, measures={})) == [
        "drawn",
        "measures",
    ]
