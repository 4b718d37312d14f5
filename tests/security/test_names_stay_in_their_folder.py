"""Names of datasets, shards, splits and videos in untrusted files stay inside their folder."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mlflow import MlflowClient

from pipelines.cli.console import RunError
from pipelines.inference.model_choice import ModelChoice
from pipelines.tracking.direct_run import write_record
from pipelines.tracking.outbox import RefusedError
from pipelines.training.run import TrainingRun
from stop_core.cache import CacheConfig, CacheJob, FrameCache, Manifest, write_shard
from stop_core.cache.export import Part, export
from stop_core.cache.fetching import LocalShards
from stop_core.cache.files import MANIFEST, read_checked_json, write_checked_json
from stop_core.datasets import DATASETS, Clip, select_clips
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import RemotePath, RemoteStatus
from stop_core.storage.skeleton import skeleton_of
from tests.stop_core.datasets.conftest import TREES, make_tree_at

OUT = ("../outside", "a/../../outside", "/outside", "..", "a\0b", "a//outside", "a\nb", "x" * 300)


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A finished cache of two clips, in a folder that no name may leave."""
    shutil.copytree(made, tmp_path / "inner")
    return tmp_path / "inner" / "cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("made")
    for split in ("train", "test"):
        write_video(root / split / "one.avi")
    (root / "clips.csv").write_text(
        "path,split,label\ntrain/one.avi,train,wave\ntest/one.avi,test,wave\n"
    )
    _make(root, list(DATASETS["csv"].read(root, 1)))
    return root


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
    """Edits a file and updates its checksum."""
    values = read_checked_json(path)
    change(values)
    write_checked_json(path, values)


@pytest.mark.parametrize("name", OUT)
def test_a_manifest_cannot_name_a_dataset_or_shard_outside(cache: Path, name: str) -> None:
    whole = (cache / MANIFEST).read_text()
    _edit(cache / MANIFEST, lambda v: v["config"].update(dataset=name))
    with pytest.raises(
        ValueError, match=r"manifest\.json, config: dataset: not the name of a file"
    ):
        TrainingRun(ExperimentConfig(), cache, cache.parent / "output")
    (cache / MANIFEST).write_text(whole)
    _edit(cache / MANIFEST, lambda v: v["shards"][0].update(name=name))
    with pytest.raises(
        ValueError, match=r"manifest\.json: shards\.0\.name: not the name of a file"
    ):
        FrameCache(cache)


@pytest.mark.parametrize("name", OUT)
def test_exported_pictures_stay_in_their_folder(cache: Path, tmp_path: Path, name: str) -> None:
    rows = list(DATASETS["csv"].read(cache.parent, 1))
    hostile = [Clip(**{**vars(clip), "video_id": f"{name}/{i}"}) for i, clip in enumerate(rows)]
    (cache.parent / "cache").rename(cache.parent / "before")
    before = {path for path in tmp_path.rglob("*") if "inner" not in path.parts}
    to = tmp_path / "inner" / "pictures"
    with pytest.raises(ValueError, match=r"the name .* cannot name a file below a folder"):
        export(_make(cache.parent, hostile), Part(), to, kind="png")
    assert not to.exists()
    assert {path for path in tmp_path.rglob("*") if "inner" not in path.parts} == before
    assert not Path("/outside").exists()


class _Bucket(RemotePath):
    """A store with hostile keys."""

    keys: ClassVar[tuple[str, ...]] = ()

    def listing(self, recursive: bool = True) -> Iterator[tuple[str, RemoteStatus | None]]:
        for key in self.keys:
            yield key, RemoteStatus(0, 0)

    def download(self, local: Path) -> None:
        local.write_text("of the bucket")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("ending", [".mp4", ".csv"])
@pytest.mark.parametrize(
    "form", ["/{}", "//{}", "a/{}", "../..{}", "a/../../..{}", "./{}", "a\0{}"]
)
def test_a_key_of_a_bucket_changes_no_local_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, ending: str, form: str
) -> None:
    """`<data root>//home/me/x` is listed as `/home/me/x`, and `Path / "/x"` is `/x`."""
    victim = tmp_path / f"victim{ending}"
    victim.write_text("precious")
    before = victim.stat()
    monkeypatch.setattr(_Bucket, "keys", ("a.mp4", form.format(victim)))
    with (
        pytest.raises(ValueError, match=f"{scheme}://bucket/data: the name"),
        skeleton_of(_Bucket(scheme, "bucket/data")),
    ):
        pass
    assert victim.read_text() == "precious"
    assert victim.stat().st_mtime_ns == before.st_mtime_ns


def test_keys_that_are_both_file_and_folder_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for keys in (("a", "a/b"), ("a/b", "a"), ("a", "a")):
        monkeypatch.setattr(_Bucket, "keys", keys)
        with (
            pytest.raises(ValueError, match="s3://bucket has a"),
            skeleton_of(_Bucket("s3", "bucket")),
        ):
            pass


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../b", "a//b", "a\0b", "a\nb"])
def test_downloaded_shards_stay_in_their_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("STOP_CACHE_FOLDER", str(tmp_path / "inner" / "fetched"))
    manifest = Manifest.load(cache)
    for wrong in (
        replace(manifest, data_hash=name),
        replace(manifest, shards=(replace(manifest.shards[0], name=name),)),
    ):
        with pytest.raises(ValueError, match="the name"):
            for _ in LocalShards(_Bucket("s3", "bucket"), wrong).each(wrong.shards):
                pass
    assert not [path for path in tmp_path.iterdir() if path.name != "inner"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.mark.parametrize("name", OUT)
def test_a_pending_record_cannot_name_a_file_outside(
    tmp_path: Path, client: MlflowClient, name: str
) -> None:
    """The file of a pending record is uploaded to the tracking store."""
    record = {"kind": "file", "name": name, "artifact_folder": None}
    with pytest.raises(RefusedError, match="the name"):
        write_record(client, "id", record, tmp_path / "run")


@pytest.mark.parametrize("name", OUT)
def test_an_mlflow_run_cannot_name_a_folder_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="is not the id of an MLflow run"):
        ModelChoice(run=name).found(tmp_path)


@pytest.mark.parametrize("dataset", sorted(TREES))
@pytest.mark.parametrize("name", OUT[:4])
def test_no_list_of_a_dataset_leaves_its_root(tmp_path: Path, dataset: str, name: str) -> None:
    """Replaces the name of a video everywhere in every list."""
    make_tree_at(tmp_path / "root", dataset)
    first = DATASETS[dataset].read(tmp_path / "root", 1)[0]
    names = {Path(first.path).stem, Path(first.path).name, first.path, first.source, "wave"}
    for path in sorted((tmp_path / "root").rglob("*")):
        if path.suffix in (".txt", ".csv", ".json"):
            text = path.read_text()
            for one in sorted(names, key=len, reverse=True):
                text = text.replace(one, name)
            path.write_text(text)
    clips: list[Clip] = []
    with suppress(ValueError, OSError):
        clips = list(DATASETS[dataset].read(tmp_path / "root", 1))
    for clip in clips:
        assert ".." not in Path(clip.path).parts
        assert not Path(clip.path).is_absolute()


@pytest.mark.parametrize("name", OUT)
def test_an_annotation_cannot_name_a_file_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "clips.csv").write_text(f"path,split,label\n{name}.avi,train,wave\n")
    if name == "..":  # with its ending it is a plain file name
        assert len(DATASETS["csv"].read(tmp_path, 1)) == 1
        return
    with pytest.raises(ValueError, match=r"clips\.csv"):
        DATASETS["csv"].read(tmp_path, 1)


def test_the_name_of_a_run_has_only_hashes_and_known_words(cache: Path) -> None:
    config = ExperimentConfig(templates=("../../{}",))
    training = TrainingRun(config, cache, cache.parent / "output")
    assert training.folder.parent == (cache.parent / "output" / "runs").resolve()
    assert json.dumps(training.name).isascii()
    assert "/" not in training.name
