"""--dry-run measures the steps that a trial would take, on the frames that it would be shown."""

from pathlib import Path

import pytest

from pipelines.resources import Resources
from pipelines.sweep_plan import _measure_here
from pipelines.sweep_trials import Trial
from pipelines.sweep_worker import Task
from stop_core.cache import CacheConfig, CacheJob, write_shard
from stop_core.datasets import DATASETS, select_clips
from sweeps.space import Distribution, SearchSpace


@pytest.fixture
def large_frames(hmdb51_root: Path, tmp_path: Path) -> Path:
    """Two clips with captions, in frames larger than the tower takes."""
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


def test_a_trial_is_measured_through_its_view_and_without_steps_where_nothing_is_trained(
    large_frames: Path, tmp_path: Path
) -> None:
    fixed = {"random_crop": True, "frames": 2, "segment_jitter": True, "n_s": 2}
    searched = {"method": Distribution(("zero-shot", "stop"))}
    space = SearchSpace(("val/t2v_r1",), fixed, searched)
    task = Task("abcd1234", space, large_frames, tmp_path, Resources())
    nothing, trained = (
        _measure_here(task, Trial(0, {"method": method}, 0)) for method in ("zero-shot", "stop")
    )
    assert nothing.step_seconds == 0 < trained.step_seconds
    assert nothing.clip_seconds > 0
