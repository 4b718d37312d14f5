"""Trials survive their process; the best settings and the front are correct."""

from pathlib import Path

import pytest

from pipelines.sweeping.trials import Trial, Trials

LUCKY, GOOD, OPEN = {"n_s": 1}, {"n_s": 2}, {"n_s": 4}
SEEDS = [
    *((LUCKY, seed, value) for seed, value in enumerate((0.3, 0.95, 0.4))),
    *((GOOD, seed, value) for seed, value in enumerate((0.7, 0.6, 0.65))),
    *((OPEN, seed, value) for seed, value in enumerate((0.9, 0.9))),  # and one that failed
]


def _trial(number: int, state: str = "finished", **measures: float) -> Trial:
    return Trial(number, {}, 0, state, [], {f"val/{k}": v for k, v in measures.items()})  # type: ignore[arg-type]


def test_trials_survive_a_round_trip_to_disk(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    first = trials.add({"n_s": 2, "depth": None, "alpha": 0.1 + 0.2}, 3)
    second = trials.add({"n_s": 4}, 3)
    first.add_epoch({"epoch": 1.0, "val/top1": 0.5})
    trials.save(first)
    again = Trials(tmp_path)
    assert again.all == [first, second]
    assert [one.name for one in again.in_state("running")] == ["trial-0000", "trial-0001"]


def test_repeated_epoch_changes_nothing() -> None:
    trial = Trial(0, {}, 0)
    for epoch, value in ((1.0, 0.1), (2.0, 0.3), (1.0, 0.1), (2.0, 0.3)):
        trial.add_epoch({"epoch": epoch, "val/top1": value})
    assert [row["epoch"] for row in trial.curve] == [1.0, 2.0]
    assert trial.epochs == 2


def test_late_epoch_takes_its_place_in_the_curve() -> None:
    trial = Trial(0, {}, 0)
    for epoch, noted in ((1.0, 1), (3.0, 1), (4.0, 1), (2.0, 4), (2.0, 4)):
        trial.add_epoch({"epoch": epoch, "val/top1": epoch / 10})
        assert trial.noted == noted
    assert [row["epoch"] for row in trial.curve] == [1.0, 2.0, 3.0, 4.0]
    assert trial.epochs == 4


def test_value_of_a_trial_is_that_of_its_chosen_epoch_or_else_the_best_so_far() -> None:
    curve = [
        {"epoch": e, "val/top1": v, "val/t2v_mean_rank": 9 - e, "step_seconds": s}
        for e, v, s in ((1.0, 0.4, 1.0), (2.0, 0.6, 9.0), (3.0, 0.5, 1.2))
    ]
    trial = Trial(0, {}, 0, "stopped early", curve)
    assert trial.value("val/top1") == 0.6
    assert trial.value("val/t2v_mean_rank") == 6
    assert trial.value("step_seconds") == 1.2  # the median: a busy moment does not count
    assert trial.value("val/top5") is None
    trial.measures = {"val/top1": 0.61}
    assert trial.value("val/top1") == 0.61


def test_best_trial_is_finished_and_the_first_of_equals(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    trials.all = [
        _trial(0, top1=0.5),
        _trial(1, top1=0.7),
        _trial(2, top1=0.7),
        _trial(3, "stopped early", top1=0.9),
        _trial(4, "failed"),
    ]
    assert [one.name for one in trials.ranked("val/top1")] == [
        "trial-0001", "trial-0002", "trial-0000",
    ]  # fmt: skip


def test_best_of_several_seeds_has_the_best_mean_over_all_of_them(
    tmp_path: Path,
) -> None:
    trials = Trials(tmp_path, seeds=3)
    for drawn, seed, value in reversed(SEEDS):
        trial = trials.add(dict(drawn), seed)
        trial.state = "finished"
        trial.measures = {"val/top1": value, "val/t2v_mean_rank": 10 - 9 * value}
        trials.save(trial)
    trials.add(OPEN, 2).state = "failed"
    for known in (trials, Trials(tmp_path, seeds=3)):
        best, second = known.ranked("val/top1")
        assert (best.drawn, second.drawn) == (GOOD, LUCKY)
        assert best.value("val/top1") == pytest.approx(0.65)
        assert [one.seed for one in best.trials] == [0, 1, 2]
        assert (best.name, best.first.seed) == (best.trials[0].name, 0)
        front = known.front(("val/top1", "val/t2v_mean_rank"))
        assert [point.drawn for point in front] == [GOOD]


def test_settings_without_the_objective_are_not_ranked(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    trials.all = [_trial(0, top1=0.5), _trial(1, t2v_mean_rank=2)]
    assert [one.name for one in trials.ranked("val/t2v_mean_rank")] == ["trial-0001"]


@pytest.mark.parametrize(
    ("objectives", "front"),
    [
        (("val/top1", "val/t2v_mean_rank"), [2, 1]),
        (("val/top1", "val/top5"), [2]),
        (("val/top1",), [2]),
    ],
)
def test_no_settings_of_the_front_are_dominated(
    objectives: tuple[str, ...], front: list[int], tmp_path: Path
) -> None:
    trials = Trials(tmp_path)
    trials.all = [
        _trial(0, top1=0.5, t2v_mean_rank=5, top5=0.6),
        _trial(1, top1=0.6, t2v_mean_rank=2, top5=0.7),
        _trial(2, top1=0.9, t2v_mean_rank=4, top5=0.9),
    ]
    assert [one.first.number for one in trials.front(objectives)] == front
