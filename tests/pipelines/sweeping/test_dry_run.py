"""--dry-run lists the planned trials, and measures steps like those of a trial."""

from pathlib import Path

import pytest

from pipelines.cluster.resources import Resources
from pipelines.sweeping import dry_run
from pipelines.sweeping.dry_run import Speed, _measure_here, print_plan
from pipelines.sweeping.sample_settings import planned
from pipelines.sweeping.search import Search
from pipelines.sweeping.space import Algorithm, Distribution, SearchSpace
from pipelines.sweeping.trial_worker import TrialTask
from pipelines.sweeping.trials import Trial
from stop_core.cache import CacheConfig, CacheJob, write_shard
from stop_core.datasets import DATASETS, select_clips


@pytest.fixture
def large_frames(hmdb51_root: Path, tmp_path: Path) -> Path:
    """Two clips with captions, whose frames are larger than the input of the tower."""
    train, val = sorted(hmdb51_root.glob("hmdb51_org/*/*.avi"))[:2]
    lines = [f"{train.relative_to(tmp_path)},train,one", f"{val.relative_to(tmp_path)},val,two"]
    (tmp_path / "clips.csv").write_text("\n".join(["path,split,caption", *lines]))
    dataset = DATASETS["csv-captions"]
    selection = select_clips(dataset.read(tmp_path, 1))
    config = CacheConfig.of(dataset, selection, fold=1, frames=4, size=40)
    job = CacheJob.open(tmp_path / "large", config, selection.clips)
    for plan in job.plans:
        write_shard(plan, config, tmp_path, job.cache)
    job.finish()
    return tmp_path / "large"


def test_speed_is_measured_on_augmented_frames_and_without_steps_for_zero_shot(
    large_frames: Path, tmp_path: Path
) -> None:
    fixed = {"random_crop": True, "frames": 2, "segment_jitter": True, "n_s": 2}
    searched = {"method": Distribution(("zero-shot", "stop"))}
    space = SearchSpace(("val/t2v_r1",), fixed, searched)
    task = TrialTask("abcd1234", space, large_frames, tmp_path, Resources())
    nothing, trained = (
        _measure_here(task, Trial(0, {"method": method}, 0)) for method in ("zero-shot", "stop")
    )
    assert nothing.step_seconds == 0 < trained.step_seconds
    assert nothing.clip_seconds > 0


@pytest.mark.parametrize(
    ("algorithm", "asked", "shown"),
    [("grid", None, 6), ("one-at-a-time", None, 6), ("random", 7, 7), ("tpe", 9, 4), ("tpe", 3, 3)],
)
def test_dry_run_counts_planned_trials_and_lists_those_that_need_no_results(
    algorithm: Algorithm,
    asked: int | None,
    shown: int,
    large_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fixed = {"frames": 2, "epochs": 2, "batch_size": 1}
    draws = algorithm in ("random", "tpe")
    n_s = Distribution(low=1, high=50, is_whole=True) if draws else Distribution((1, 2, 3))
    space = SearchSpace(
        ("val/t2v_r1",), fixed, {"n_s": n_s}, algorithm, trials=5 if draws else None,
        seeds=1 if draws else 2, around={} if draws else {"n_s": 2}, startup_trials=4,
    )  # fmt: skip
    search = Search(space, "mine", asked, 0, large_frames, tmp_path / "out", Resources())
    monkeypatch.setattr(dry_run, "start_ray", lambda dashboard: None)
    monkeypatch.setattr(Search, "at_once", lambda self: 2)
    # Two epochs of one step, three evaluations of one clip: 2 * 10 + 3 * 20 seconds per trial.
    monkeypatch.setattr(dry_run, "_measure", lambda search, trial: Speed(10.0, 20.0, 0.0))
    print_plan(search)
    printed = " ".join(capsys.readouterr().out.split())
    count = len(planned(space, asked, 0))
    seconds = count * 80 / 2
    hours = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    assert f"a trial: about 2 steps, 80 s; {count} trials, 2 at once: about {hours}" in printed
    assert printed.count("trial-0") - printed.count("of trial-0") == shown
    assert (f"and {count - shown} more, which TPE draws" in printed) == (count > shown)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fixed", "steps", "seconds"),
    [
        # Epochs of three captions: 6 steps, and evaluations after 3, after 6 and at the end.
        ({"captions": "every", "epochs": 2}, 6, 6 * 10 + 3 * 20),
        ({"captions": "every", "steps": 4}, 4, 4 * 10 + 3 * 20),
        ({"steps": 4}, 4, 4 * 10 + 5 * 20),
        ({"method": "zero-shot", "steps": 4}, 0, 20),
    ],
)
def test_dry_run_counts_captions_and_steps(
    fixed: dict[str, object],
    steps: int,
    seconds: int,
    large_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    searched = {"n_s": Distribution((1,))}
    space = SearchSpace(("val/t2v_r1",), {"batch_size": 1, **fixed}, searched, "grid")
    search = Search(space, "mine", None, 0, large_frames, tmp_path / "out", Resources())
    monkeypatch.setattr(dry_run, "start_ray", lambda dashboard: None)
    monkeypatch.setattr(Search, "at_once", lambda self: 1)
    monkeypatch.setattr(dry_run, "_measure", lambda search, trial: Speed(10.0, 20.0, 0.0, 3))
    print_plan(search)
    printed = " ".join(capsys.readouterr().out.split())
    duration = f"{seconds} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    assert f"a trial: about {steps} steps, {duration}; 1 trials" in printed
