"""The parts of Ray Tune that read the disk, without a cluster: resumed and stopped trials."""

import itertools
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.cluster.resources import Resources
from pipelines.sweeping.space import Asha, Distribution, SearchSpace
from pipelines.sweeping.trial_worker import FAILURE_KEY, TrialTask
from pipelines.sweeping.trials import Trial, Trials
from pipelines.sweeping.tune import Driver, NotedAsha

EPOCHS = 4
SPACE = SearchSpace(
    ("val/top1",),
    {"method": "stop", "epochs": EPOCHS},
    {"alpha": Distribution(low=0.0, high=1.0)},
    "tpe",
    6,
    Asha(1, 2),
    startup_trials=2,
)


class _Task(TrialTask):
    """A task whose trainings have names and no cache."""

    def training(self, drawn: dict[str, Any], seed: int) -> Any:
        if drawn["alpha"] < 0.05:
            raise ValueError("alpha does not fit")
        return SimpleNamespace(name=f"run-{drawn['alpha']}")


def _driver(folder: Path, ended: Callable[[Trial], None] = lambda trial: None) -> Driver:
    task = _Task("abcd1234", SPACE, folder, folder, Resources())
    return Driver(task, Trials(folder), None, 0, ended)


def _row(epoch: int, value: float, finished: int = 0) -> dict[str, Any]:
    return {"epoch": epoch, "val/top1": value, "finished": finished, "time_total_s": 3.0}


class _Sweep:
    """Runs one trial after the other, as Tune does; `restart` leaves only the files on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.decisions: list[tuple[str, int, str]] = []
        self._ids = itertools.count()
        self.restart()

    def restart(self) -> None:
        self.driver = _driver(self.folder)
        self.asha = NotedAsha(self.driver, Asha(1, 2))

    def run(self, kills: dict[tuple[int, int], str]) -> None:
        """Runs to the end; `kills` has interruptions before or after the record of an epoch."""
        while (config := self.driver.suggest(f"tune-{next(self._ids)}")) != Searcher.FINISHED:
            tune_id = next(reversed(self.driver._by_tune_id))
            trial = SimpleNamespace(trial_id=tune_id, config=config)
            self.asha.on_trial_add(None, trial)
            if not self._train(trial, config, kills):
                self.restart()

    def _train(self, trial: Any, config: Any, kills: dict[tuple[int, int], str]) -> bool:
        value = config["drawn"]["alpha"]
        for epoch in range(config["noted"] + 1, EPOCHS + 1):
            when = kills.pop((config["number"], epoch), "")
            if when == "before":
                return False
            row = _row(epoch, value * epoch / EPOCHS)
            action = self.asha.on_trial_result(None, trial, row)
            self.decisions.append((config["name"], epoch, action))
            if action == TrialScheduler.STOP:
                return when != "after"
            self.driver.on_trial_result(trial.trial_id, row)
            if when == "after":
                return False
        self.driver.on_trial_result(trial.trial_id, _row(EPOCHS, value, finished=1))
        return True


def test_interrupted_sweep_ends_with_the_same_trials_and_decisions(
    tmp_path: Path,
) -> None:
    whole, broken = _Sweep(tmp_path / "whole"), _Sweep(tmp_path / "broken")
    whole.run({})
    kills = {(0, 2): "before", (1, 1): "after", (2, 4): "after", (4, 1): "before", (5, 1): "after"}
    broken.run(dict(kills))
    assert broken.driver.trials.all == whole.driver.trials.all
    assert broken.decisions == whole.decisions
    states = {one.state for one in whole.driver.trials.all}
    assert states == {"finished", "stopped early"}
    assert whole.driver.is_done


def test_trials_are_recorded_before_they_start_and_interrupted_ones_come_first(
    tmp_path: Path,
) -> None:
    driver = _driver(tmp_path)
    first, second = driver.suggest("a"), driver.suggest("b")
    driver.on_trial_result("a", _row(1, 0.5))
    again = _driver(tmp_path)
    assert again.suggest("c") == {**first, "noted": 1}  # type: ignore[dict-item]
    assert again.suggest("d") == second
    assert again.suggest("e")["name"] == "trial-0002"  # type: ignore[index]


def test_epoch_lost_in_two_interruptions_is_requested_again(tmp_path: Path) -> None:
    driver = _driver(tmp_path)
    driver.suggest("a")
    for epoch in (1, 3):
        driver.on_trial_result("a", _row(epoch, 0.5))
    again = _driver(tmp_path)
    assert again.suggest("b")["noted"] == 1  # type: ignore[index]
    again.on_trial_result("b", _row(2, 0.4))
    assert [row["epoch"] for row in Trials(tmp_path).all[0].curve] == [1, 2, 3]


def test_asha_sees_every_epoch_once_despite_repetitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, float]] = []
    judge = ASHAScheduler.on_trial_result

    def counted(self: Any, controller: Any, trial: Any, row: Any) -> str:
        seen.append((trial.trial_id, row["epoch"]))
        return str(judge(self, controller, trial, row))

    monkeypatch.setattr(ASHAScheduler, "on_trial_result", counted)
    driver = _driver(tmp_path)
    driver.suggest("before")
    driver.on_trial_result("before", _row(1, 0.5))  # then it is interrupted
    driver = _driver(tmp_path)
    asha = NotedAsha(driver, Asha(1, 2))
    trial = SimpleNamespace(trial_id="after", config=driver.suggest("after"))
    asha.on_trial_add(None, trial)
    for epoch in (1, 2, 2, 3, 1, 2, 3, 4, 4):
        row = _row(epoch, 0.5)
        assert asha.on_trial_result(None, trial, row) == TrialScheduler.CONTINUE
        driver.on_trial_result("after", row)
    assert seen == [("after", epoch) for epoch in (1, 2, 3, 4)]
    again = _driver(tmp_path)
    NotedAsha(again, Asha(1, 2)).on_trial_add(None, trial)
    assert seen[4:] == seen[:4], "a new scheduler sees the recorded epochs"


def test_no_trial_is_stopped_after_its_last_epoch(tmp_path: Path) -> None:
    sweep = _Sweep(tmp_path)
    sweep.run({})
    last = [action for _, epoch, action in sweep.decisions if epoch == EPOCHS]
    assert last
    assert set(last) == {TrialScheduler.CONTINUE}


def test_failure_is_recorded_with_its_reason_and_the_search_continues(tmp_path: Path) -> None:
    ended: list[tuple[str, str]] = []
    driver = _driver(tmp_path, lambda trial: ended.append((trial.name, trial.state)))
    asha = NotedAsha(driver, Asha(1, 2))
    config = driver.suggest("a")
    trial = SimpleNamespace(trial_id="a", config=config)
    asha.on_trial_add(None, trial)
    result = {FAILURE_KEY: "the loss is nan", "val/top1": math.nan, "epoch": 0, "finished": 1}
    assert asha.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    driver.on_trial_result("a", result)
    asha.on_trial_complete(None, trial, result)
    assert ended == [("trial-0000", "failed")]
    assert Trials(tmp_path).all[0].reason == "the loss is nan"
    assert driver.suggest("b") != Searcher.FINISHED


def test_settings_that_do_not_fit_fail_before_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = _driver(tmp_path)
    driver.plan = [({"alpha": 0.01}, 0), ({"alpha": 0.5}, 0)]
    config = driver.suggest("a")
    assert config["name"] == "trial-0001"  # type: ignore[index]
    assert driver.trials.all[0].state == "failed"
    assert driver.trials.all[0].reason == "alpha does not fit"


@pytest.mark.parametrize(("alpha", "number"), [(0.5, 0), (0.01, 1)])
def test_trial_has_its_run_from_the_first_write_or_gets_it_on_resume(
    tmp_path: Path, alpha: float, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, written = _driver(tmp_path), []
    driver.plan = [({"alpha": alpha}, 0), ({"alpha": 0.6}, 0)]

    def killed(trial: Trial) -> None:
        written.append(replace(trial))
        raise KeyboardInterrupt

    monkeypatch.setattr(driver.trials, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        driver.suggest("a")
    assert written[0].run == ("run-0.5" if number == 0 else "")
    Trials(tmp_path).save(replace(written[0], run=""))  # as earlier versions wrote it
    again = _driver(tmp_path)
    again.plan = driver.plan
    assert again.suggest("b")["number"] == number  # type: ignore[index]
    trials = Trials(tmp_path).all
    assert trials[number].run == f"run-{(0.5, 0.6)[number]}"
    assert [one.state for one in trials[:number]] == ["failed"] * number


def test_interrupted_trial_has_not_ended(tmp_path: Path) -> None:
    driver = _driver(tmp_path)
    driver.suggest("a")
    driver.on_trial_result("a", _row(1, 0.5))
    driver.on_trial_complete("a", _row(1, 0.5))  # as Tune does for all trials at Ctrl-C
    assert not driver.is_done
    assert [one.state for one in Trials(tmp_path).all] == ["running"]


def test_driver_can_be_pickled(tmp_path: Path) -> None:
    driver = _driver(tmp_path)
    pickle.dumps(driver)
    task = replace(driver.task, parent="run")
    assert task.parent == "run"
