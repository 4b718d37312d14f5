"""A cache on S3 or GCS is the one on disk, byte for byte; each shard is fetched once.

Tested against real servers in separate processes: moto's for S3, and gcp-storage-emulator for GCS,
where it is installed.
"""

import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.fs
import pytest
import torch

from stop_core.cache import CacheConfig, CacheJob, FrameCache, hashed, read_failures, write_shard
from stop_core.cache.integrity import verify
from stop_core.cache.reading import _clip_list
from stop_core.datasets import DATASETS, select_clips
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions
from stop_core.storage.atomic import hash_file
from stop_core.storage.paths import RemotePath, StoragePath
from stop_core.storage.skeleton import skeleton_of
from stop_core.training.order import epoch_batches
from tests.stop_core.cache.conftest import FlakyDecoder


def _server_command(scheme: str, host: str, port: str) -> list[str]:
    if scheme == "s3":
        pytest.importorskip("moto", reason="the S3 server of the tests is in the extra `dev`")
        return [sys.executable, "-m", "moto.server", "--host", host, "--port", port]
    emulator = shutil.which("gcp-storage-emulator")
    if emulator is None:
        pytest.skip("there is no gcp-storage-emulator on the PATH")
    return [emulator, "start", "--host", host, "--port", port, "--in-memory"]


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """A store in a separate process; gives its scheme, `host:port`, and log of requests."""
    scheme = request.param
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    host, port = address.split(":")
    command = _server_command(scheme, host, port)
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for _ in range(600):
            if not socket.socket().connect_ex((host, int(port))):
                break
            time.sleep(0.05)
        yield scheme, address, log
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def log(server: tuple[str, str, Path]) -> Path:
    if server[0] == "gs":
        pytest.skip("the emulator logs no requests")
    return server[2]


@pytest.fixture
def bucket(
    server: tuple[str, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RemotePath:
    scheme, address, _ = server
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("STOP_CACHE_FOLDER", str(tmp_path / "fetched"))
    name = tmp_path.name.replace("_", "-").lower()
    query = f"endpoint_override={address}&scheme=http"
    if scheme == "gs":
        google = pyarrow.fs.GcsFileSystem(
            anonymous=True, endpoint_override=address, scheme="http", project_id="tests"
        )
        google.create_dir(name)
        return RemotePath("gs", f"{name}/some folder", query, "anonymous")
    amazon = pyarrow.fs.S3FileSystem(
        endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    amazon.create_dir(name)
    return RemotePath("s3", f"{name}/some folder", f"{query}&region=us-east-1")


def _open(cache: StoragePath, root: Path, clips_per_shard: int | None = None) -> CacheJob:
    selection = select_clips(DATASETS["hmdb51"].read(root, 1))
    config = CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=4, size=16)
    return CacheJob.open(cache, config, selection.clips, clips_per_shard)


def _make(
    cache: StoragePath,
    data_root: StoragePath,
    retry_failed: bool = False,
    clips_per_shard: int | None = None,
) -> CacheJob:
    with skeleton_of(data_root) as root:
        job = _open(cache, root, clips_per_shard)
        pending = job.pending(root, retry_failed)
    for plan in pending:
        write_shard(plan, job.config, data_root, cache)
    job.finish()
    return job


def _upload(root: Path, to: RemotePath) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            (to / str(path.relative_to(root))).upload(path)


def _data(cache: StoragePath) -> dict[str, bytes]:
    files = [*(cache / "data").iterdir(), cache / "failures.parquet"]
    return {path.name: path.open("rb").read() for path in files}


def test_a_cache_made_on_a_store_from_a_store_is_the_local_one(
    hmdb51_root: Path, tmp_path: Path, bucket: RemotePath
) -> None:
    first, second, *_ = sorted(hmdb51_root.glob("hmdb51_org/*/*.avi"))
    first.unlink()
    second.write_bytes(b"not a video")
    local = _make(tmp_path / "cache", hmdb51_root)
    _upload(hmdb51_root, bucket / "videos")
    remote = _make(bucket / "cache", bucket / "videos")
    assert _data(remote.cache) == _data(local.cache)
    assert [f.stage for f in read_failures(remote.cache)] == ["find", "decode"]
    assert list(verify(remote.cache)) == [""] * 10
    with skeleton_of(bucket / "videos") as root:
        assert remote.pending(root) == []
        clips = select_clips(DATASETS["hmdb51"].read(root, 1)).clips
    (bucket / "videos" / clips[-1].path).upload(second)
    with skeleton_of(bucket / "videos") as root:
        assert [plan.split for plan in remote.pending(root)] == [clips[-1].split]


def test_two_commands_at_once_make_one_cache_next_to_others(
    hmdb51_root: Path, tmp_path: Path, bucket: RemotePath
) -> None:
    other = _make(bucket / "cache 2", hmdb51_root).cache
    begun = _open(tmp_path / "alone", hmdb51_root, 4)
    for plan in begun.plans:
        write_shard(plan, begun.config, hmdb51_root, begun.cache)
    alone = begun.finish()
    one, two = (_open(bucket / "cache", hmdb51_root, 4) for _ in range(2))
    assert one == two
    assert one.pending(hmdb51_root) == two.pending(hmdb51_root) == list(begun.plans)
    for number, plan in enumerate(one.plans):
        both = (one, two) if number % 2 else (two, one)
        for job in both:
            write_shard(plan, job.config, hmdb51_root, job.cache)
    assert one.finish() == alone
    assert two.finish() == alone
    assert _data(one.cache) == _data(begun.cache)
    assert not any(verify(one.cache))
    assert not any(verify(other))


def test_failures_alone_are_fetched_and_tried_again(
    hmdb51_root: Path, bucket: RemotePath, flaky: FlakyDecoder
) -> None:
    _upload(hmdb51_root, bucket / "videos")
    whole = _data(_make(bucket / "whole", bucket / "videos").cache)
    train = [clip.video_id for clip in _make(bucket / "whole", hmdb51_root).plans[0].clips]
    flaky.asked.clear()
    flaky.bad = frozenset({1, 3})
    job = _make(bucket / "cache", bucket / "videos")
    assert [f.video_id for f in read_failures(job.cache)] == [train[1], train[3]]

    flaky.bad = frozenset()
    flaky.asked.clear()
    again = _make(bucket / "cache", bucket / "videos", retry_failed=True)
    assert len(flaky.asked) == 2, "the others were kept"
    assert _data(again.cache) == whole


def test_shards_are_fetched_once_and_checked(
    hmdb51_root: Path, tmp_path: Path, bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = _make(tmp_path / "cache", hmdb51_root).cache
    remote = _make(bucket / "cache", hmdb51_root).cache
    assert isinstance(remote, RemotePath)
    expected = FrameCache(local).split("train")
    clips = pickle.loads(pickle.dumps(FrameCache(str(remote)).split("train")))
    assert clips.video_ids == expected.video_ids
    assert torch.equal(clips.read([2, 0]), expected.read([2, 0]))

    shard = remote / "data" / "train-00000.parquet"
    whole = shard.read_bytes()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    shard.upload(damaged)
    again = FrameCache(remote).split("train")
    assert torch.equal(again.read([1]), expected.read([1])), "it was fetched a second time"

    (copy,) = (tmp_path / "fetched").rglob("train-00000.parquet")
    copy.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"delete it, then run .* downloads it again"):
        FrameCache(remote).split("train").read([0])

    shutil.rmtree(tmp_path / "fetched")
    with pytest.raises(ValueError, match=r"train-00000.parquet\?\S* is damaged: its hash"):
        FrameCache(remote).split("train").read([0])
    assert not list((tmp_path / "fetched").rglob("[!.]*.parquet"))
    shard.unlink()
    with pytest.raises(ValueError, match="is gone"):
        FrameCache(remote).split("train").read([0])
    assert list(filter(None, verify(remote))) == [f"{shard}: it is gone"]


def test_what_is_not_there_is_named_by_its_uri(bucket: RemotePath) -> None:
    with pytest.raises(FileNotFoundError, match=r"no frame cache at \w+://.*some folder/cache"):
        FrameCache(bucket / "cache")
    with pytest.raises(FileNotFoundError, match=r"data root \w+://.*is not a folder"):  # noqa: SIM117
        with skeleton_of(bucket / "videos") as root:
            DATASETS["hmdb51"].read(root, 1)
    nowhere = replace(bucket, key="no-such-bucket/cache")
    clips = (None, (), ("train",), ("a",), "0" * 64, "recognition")
    config = CacheConfig("d", 1, 2, 16, *clips, "center", "none")
    with pytest.raises(OSError, match=r"cannot write a cache to \w+://\S*no-such-bucket"):
        CacheJob.open(nowhere, config, [])


def test_a_store_that_is_lost_fails_no_clip(
    hmdb51_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    # One clip: the client retries each request for seconds.
    selection = select_clips(DATASETS["hmdb51"].read(hmdb51_root, 1), splits=("train",), limit=1)
    config = CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=2, size=16)
    job = CacheJob.open(tmp_path / "cache", config, selection.clips)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{probe.getsockname()[1]}"
    lost = RemotePath("s3", "bucket/videos", f"endpoint_override={closed}&scheme=http&region=x")
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        write_shard(job.plans[0], config, lost, job.cache)
    assert not list((tmp_path / "cache/records").iterdir())


def test_fetched_shards_count_as_compared_and_a_change_after_it_is_seen(
    hmdb51_root: Path, tmp_path: Path, bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(hashed, "hash_file", lambda path: read.append(path) or hash_file(path))
    path = _make(bucket / "cache", hmdb51_root).cache
    for _ in range(2):  # the second one finds the copy
        cache = FrameCache(path)
        cache.watch(["train"]).wait()
        cache.verify(["train"])
        assert len(cache.split("train").read([0])) == 1
    assert not read
    (copy,) = (tmp_path / "fetched").rglob("train-*.parquet")
    data = copy.read_bytes()
    copy.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    for changed in (cache, FrameCache(path)):
        with pytest.raises(ValueError, match="delete it, then run the same command again, which d"):
            changed.split("train").read([0])
    assert read


def test_requests_before_the_first_batch_do_not_grow_with_the_cache(
    hmdb51_root: Path, tmp_path: Path, bucket: RemotePath, log: Path
) -> None:
    """In both orders, with room for two shards. Every process of a training opens the cache."""
    found = set()
    for rows in (3, 1):  # 4 and 10 shards of the training split
        cache = _make(bucket / f"cache{rows}", hmdb51_root, clips_per_shard=rows).cache
        largest = max(entry.file_bytes for entry in FrameCache(cache).manifest.shards)
        for shuffle in ("global", "shards"):
            shutil.rmtree(tmp_path / "fetched", ignore_errors=True)
            _clip_list.cache_clear()
            before = len(log.read_text())
            clips = FrameCache(cache, limit=2 * largest).split("train")
            assert len(clips.video_ids) == len(clips.labels) == 10
            options = TrainingOptions(shuffle=shuffle)  # type: ignore[arg-type]
            batch = epoch_batches(
                10, ExperimentConfig(batch_size=2, training=options), 0, clips.shards
            )[0]
            needed = {clips.shards[clip] for clip in batch}
            assert len(clips.read(batch)) == 2
            requests = log.read_text()[before:]
            assert sorted(re.findall(r"GET \S*/data/(\S+)\.parquet", requests)) == sorted(needed)
            found.add(requests.count("HTTP/1.1") - 2 * len(needed))
    assert len(found) == 1
    assert max(found) < 12
