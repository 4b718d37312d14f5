"""Names that a file brings, of a dataset, a shard, a split or a video, lead nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.training_run import TrainingRun
from stop_core.cache import CacheConfig, CacheJob, FrameCache, write_shard
from stop_core.cache.export import Part, export
from stop_core.cache.files import MANIFEST, read_json, write_json
from stop_core.datasets import DATASETS, Clip, select_clips
from stop_core.experiment import ExperimentConfig

OUT = ("../outside", "a/../../outside", "/outside", "..", "a\0b")


@pytest.fixture
def cache(tmp_path: Path, write_video: Callable[..., Path]) -> Path:
    """A finished cache of two clips, below a folder that nothing must leave."""
    root = tmp_path / "inner"
    for split in ("train", "test"):
        write_video(root / split / "one.avi")
    (root / "clips.csv").write_text(
        "path,split,label\ntrain/one.avi,train,wave\ntest/one.avi,test,wave\n"
    )
    return _make(root, list(DATASETS["csv"].read(root, 1)))


def _make(root: Path, clips: list[Clip]) -> Path:
    dataset = DATASETS["csv"]
    selection = select_clips(dataset.read(root, 1))
    config = CacheConfig.of(dataset, selection, fold=1, frames=2, size=32)
    job = CacheJob.open(root / "cache", config, clips)
    for plan in job.plans:
        write_shard(plan, config, root, job.cache)
    job.finish()
    return root / "cache"


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As somebody would who knows how the checksum is made."""
    values = read_json(path)
    change(values)
    write_json(path, values)


@pytest.mark.parametrize("name", OUT)
def test_a_manifest_cannot_name_a_dataset_or_shard_elsewhere(cache: Path, name: str) -> None:
    whole = (cache / MANIFEST).read_text()
    _edit(cache / MANIFEST, lambda v: v["config"].update(dataset=name))
    with pytest.raises(ValueError, match="leads to another folder"):
        TrainingRun(ExperimentConfig(), cache, cache.parent / "output")
    (cache / MANIFEST).write_text(whole)
    _edit(cache / MANIFEST, lambda v: v["shards"][0].update(name=name))
    with pytest.raises(ValueError, match="leads to another folder"):
        FrameCache(cache)


@pytest.mark.parametrize("name", OUT[:-1])
def test_exported_pictures_stay_below_their_folder(cache: Path, tmp_path: Path, name: str) -> None:
    rows = list(DATASETS["csv"].read(cache.parent, 1))
    hostile = [Clip(**{**vars(clip), "video_id": f"{name}/{i}"}) for i, clip in enumerate(rows)]
    (cache.parent / "cache").rename(cache.parent / "before")
    before = {path for path in tmp_path.rglob("*") if "inner" not in path.parts}
    to = tmp_path / "inner" / "pictures"
    assert export(_make(cache.parent, hostile), Part(), to, kind="png") == 2
    assert len(list(to.rglob("*.png"))) >= 2
    assert {path for path in tmp_path.rglob("*") if "inner" not in path.parts} == before
    assert not Path("/outside").exists()


@pytest.mark.parametrize("name", OUT)
def test_an_annotation_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "clips.csv").write_text(f"path,split,label\n{name}.avi,train,wave\n")
    if name == "..":  # with its ending it is a plain file name
        assert len(DATASETS["csv"].read(tmp_path, 1)) == 1
        return
    with pytest.raises(ValueError, match=r"clips\.csv"):
        DATASETS["csv"].read(tmp_path, 1)


def test_a_run_is_named_by_hashes_and_known_words(cache: Path) -> None:
    config = ExperimentConfig(templates=("../../{}",))
    training = TrainingRun(config, cache, cache.parent / "output")
    assert training.folder.parent == (cache.parent / "output" / "runs").resolve()
    assert json.dumps(training.name).isascii()
    assert "/" not in training.name
