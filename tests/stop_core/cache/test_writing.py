"""A shard whose clips fail, are tried again, or find the disk full: nothing is lost or doubled."""

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stop_core.cache import CacheConfig, CacheJob, Manifest, read_failures, write_shard, writing
from stop_core.cache.files import shard_path, write_checked_json
from stop_core.datasets import DATASETS, select_clips
from stop_core.decoding import decode_clip
from tests.stop_core.cache.conftest import FlakyDecoder

WriteVideo = Callable[..., Path]


def _job(cache: Path, root: Path, clips_per_shard: int = 5) -> CacheJob:
    selection = select_clips(DATASETS["hmdb51"].read(root, 1))
    config = CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=4, size=16)
    return CacheJob.open(cache, config, selection.clips, clips_per_shard)


def _make(cache: Path, root: Path, retry_failed: bool = False) -> Manifest:
    job = _job(cache, root)
    for plan in job.pending(root, retry_failed):
        job.start()
        write_shard(plan, job.config, root, cache)
    return job.finish()


def _tree(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def test_failures_alone_are_tried_again_and_leave_no_trace(
    hmdb51_root: Path, tmp_path: Path, flaky: FlakyDecoder
) -> None:
    _make(tmp_path / "whole", hmdb51_root)
    clips = _job(tmp_path / "whole", hmdb51_root).plans[0].clips
    names = [Path(clip.path).name for clip in clips]
    cache = tmp_path / "cache"

    flaky.bad = frozenset(names[1:4])
    _make(cache, hmdb51_root)
    assert [f.attempts for f in read_failures(cache)] == [1, 1, 1]
    before = _tree(cache)

    flaky.asked.clear()
    _make(cache, hmdb51_root)
    assert flaky.asked == [], "failures are not tried again unless that is asked for"
    assert _tree(cache) == before

    flaky.bad = frozenset(names[2:3])
    _make(cache, hmdb51_root, retry_failed=True)
    assert flaky.asked == names[1:4], "and then they alone are"
    (failure,) = read_failures(cache)
    assert (failure.source_path, failure.attempts) == (clips[2].path, 2)
    assert failure.error == "timed out after 1 s"

    flaky.bad = frozenset()
    _make(cache, hmdb51_root, retry_failed=True)
    assert _tree(cache) == _tree(tmp_path / "whole")


def test_a_shard_that_failed_as_a_whole_is_tried_again(
    hmdb51_root: Path, tmp_path: Path, flaky: FlakyDecoder
) -> None:
    _make(tmp_path / "whole", hmdb51_root)
    flaky.bad = frozenset(path.name for path in hmdb51_root.rglob("*.avi"))
    assert _make(tmp_path / "cache", hmdb51_root).failures == 16
    flaky.bad = frozenset()
    _make(tmp_path / "cache", hmdb51_root, retry_failed=True)
    assert _tree(tmp_path / "cache") == _tree(tmp_path / "whole")


def test_attempts_survive_a_kill_between_the_file_and_its_record(
    hmdb51_root: Path, tmp_path: Path, flaky: FlakyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = _job(tmp_path / "a", hmdb51_root).plans[0].clips
    names = [Path(clip.path).name for clip in clips]
    for cache in (tmp_path / "a", tmp_path / "b"):
        flaky.bad = frozenset(names[:2])
        _make(cache, hmdb51_root)
        flaky.bad = frozenset(names[:1])
        if cache.name == "b":
            monkeypatch.setattr(writing, "write_checked_json", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                _make(cache, hmdb51_root, retry_failed=True)
            monkeypatch.setattr(writing, "write_checked_json", write_checked_json)
        _make(cache, hmdb51_root, retry_failed=True)
    assert [f.attempts for f in read_failures(tmp_path / "b")] == [2]
    assert _tree(tmp_path / "a") == _tree(tmp_path / "b")


def test_a_killed_retry_goes_on_with_the_clips_that_it_had_not_tried(
    hmdb51_root: Path, tmp_path: Path, flaky: FlakyDecoder
) -> None:
    for cache in (tmp_path / "whole", tmp_path / "killed"):
        flaky.bad = frozenset(path.name for path in hmdb51_root.rglob("*.avi"))
        _make(cache, hmdb51_root)
        if cache.name == "killed":
            job = _job(cache, hmdb51_root)
            first, *_ = job.pending(hmdb51_root, retry_failed=True)
            job.start()
            write_shard(first, job.config, hmdb51_root, cache)
        _make(cache, hmdb51_root, retry_failed=True)
        assert {failure.attempts for failure in read_failures(cache)} == {2}
    assert _tree(tmp_path / "killed") == _tree(tmp_path / "whole")
    _make(tmp_path / "whole", hmdb51_root, retry_failed=True)
    assert {failure.attempts for failure in read_failures(tmp_path / "whole")} == {3}


def test_a_task_that_runs_twice_tries_its_clips_once(
    hmdb51_root: Path, tmp_path: Path, flaky: FlakyDecoder
) -> None:
    """As Ray runs that of a worker that died after it had written the record."""
    cache = tmp_path / "cache"
    flaky.bad = frozenset(path.name for path in hmdb51_root.rglob("*.avi"))
    _make(cache, hmdb51_root)
    job = _job(cache, hmdb51_root)
    for plan in job.pending(hmdb51_root, retry_failed=True):
        first, second = (write_shard(plan, job.config, hmdb51_root, cache) for _ in range(2))
        assert first == second
    job.finish()
    assert {failure.attempts for failure in read_failures(cache)} == {2}


def _interrupt(path: Path, value: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_an_error_and_what_is_complete_stays(
    hmdb51_root: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            _make(disk / "cache", hmdb51_root)
        complete = list((disk / "cache/records").glob("[!.]*.json"))
        assert complete
        done = _tree(disk / "cache/data")
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        _make(disk / "cache", hmdb51_root)
        assert done.items() <= _tree(disk / "cache/data").items()
        _make(tmp_path / "whole", hmdb51_root)
        assert _tree(disk / "cache") == _tree(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_sparse_file_costs_its_deadline_and_no_other_clip(
    hmdb51_root: Path, tmp_path: Path, write_video: WriteVideo
) -> None:
    """It decodes at once, as an MP4 lists its frames, and would be hashed for many minutes."""
    cache = tmp_path / "cache"
    job = _job(cache, hmdb51_root)
    job.start()
    plan = job.plans[0]
    huge = plan.clips[1]
    write_video(tmp_path / "huge.mp4").rename(hmdb51_root / huge.path)
    with (hmdb51_root / huge.path).open("r+b") as file:
        file.truncate(1 << 40)
    assert decode_clip(hmdb51_root / huge.path, 4, 16).num_frames
    began = time.monotonic()
    record = write_shard(plan, job.config, hmdb51_root, cache, timeout=4)
    assert time.monotonic() - began < 60
    assert [(f.video_id, f.error) for f in record.failures] == [
        (huge.video_id, "timed out after 4 s")
    ]
    table = pq.read_table(shard_path(cache, plan.name))
    for row in table.drop_columns(["frames"]).to_pylist():
        with (hmdb51_root / row["source_path"]).open("rb") as file:
            assert row["source_sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    assert len(table) == len(plan.clips) - 1
