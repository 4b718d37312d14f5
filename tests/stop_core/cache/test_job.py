"""Beginning a cache: in which folders, with which options, and which of two commands may."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stop_core.cache import CacheConfig, CacheJob, job, write_shard
from stop_core.cache.files import read_checked_json, write_checked_json
from stop_core.datasets import DATASETS, Selection, select_clips
from tests.tools import files_below

Begin = Callable[..., CacheJob]


def _selection(root: Path) -> Selection:
    return select_clips(DATASETS["hmdb51"].read(root, 1))


def _config(selection: Selection) -> CacheConfig:
    return CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=4, size=16)


@pytest.fixture
def begin(hmdb51_root: Path, tmp_path: Path) -> Begin:
    """A function that begins the cache in the folder `cache`, with other options if asked."""
    selection = _selection(hmdb51_root)

    def begin(**options: Any) -> CacheJob:
        count = options.pop("clips_per_shard", None)
        config = replace(_config(selection), **options)
        return CacheJob.open(tmp_path / "cache", config, selection.clips, count)

    return begin


def test_other_options_are_refused_and_shown(
    begin: Begin, hmdb51_root: Path, tmp_path: Path
) -> None:
    begin()
    shown = "frames is 4 there and 8 here; classes is all there and wave here.*--cache"
    with pytest.raises(ValueError, match=shown):
        begin(frames=8, classes=("wave",))
    with pytest.raises(ValueError, match="annotation files list other clips"):
        begin(clips_hash="x")
    selection = _selection(hmdb51_root)
    config = _config(selection)
    with pytest.raises(ValueError, match="holds files but no frame cache"):
        CacheJob.open(hmdb51_root, config, selection.clips)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write a cache to"):
        CacheJob.open(tmp_path / "file/cache", config, selection.clips)


def test_a_lost_or_damaged_job_file_is_made_again_and_nothing_else(
    begin: Begin, hmdb51_root: Path, tmp_path: Path
) -> None:
    first = begin()
    cache, config = first.cache, first.config
    for plan in first.plans[1:]:
        write_shard(plan, config, hmdb51_root, cache)
    job_file = cache / "job.json"
    whole = job_file.read_bytes()
    job_file.unlink()
    assert begin().pending(hmdb51_root) == [first.plans[0]]
    assert job_file.read_bytes() == whole
    job_file.unlink()
    assert begin(frames=3).pending(hmdb51_root) == list(first.plans), "others are not taken for it"
    job_file.write_bytes(whole)

    write_shard(first.plans[0], config, hmdb51_root, cache)
    begin().finish()
    made = files_below(cache)
    job_file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="delete it and run the same preprocess command again"):
        begin()
    job_file.unlink()
    with pytest.raises(ValueError, match="frames is 4 there and 3 here"):
        begin(frames=3)
    assert begin().pending(hmdb51_root) == []
    assert files_below(cache) == made

    job_file.unlink()
    (cache / "manifest.json").unlink()
    few = [clip for clip in _selection(hmdb51_root).clips if clip.split == "train"]
    with pytest.raises(
        ValueError, match=r"(test|val)-00000\.\S+ does not belong to this frame cache"
    ):
        CacheJob.open(cache, config, few)
    (cache / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds files but no frame cache"):
        begin()


def test_a_resumed_cache_keeps_the_size_of_its_shards(
    begin: Begin, hmdb51_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "usual_clips_per_shard", lambda clips, size: 4)
    first = begin(clips_per_shard=3)
    assert [len(plan.clips) for plan in first.plans] == [3, 3, 3, 1, 2, 3, 1]
    assert begin() == begin(clips_per_shard=3) == first
    with pytest.raises(ValueError, match="clips_per_shard is 3 there and 4 here"):
        begin(clips_per_shard=4)
    job_file = tmp_path / "cache/job.json"
    values = read_checked_json(job_file)
    del values["clips_per_shard"]  # as before 30 November 2026
    write_checked_json(job_file, values)
    assert [len(plan.clips) for plan in begin().plans] == [10, 2, 4]


def test_without_a_job_file_the_shards_show_their_size(
    begin: Begin, hmdb51_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin()  # 64 clips a shard, as all caches before 30 November 2026
    for plan in first.plans[:2]:
        write_shard(plan, first.config, hmdb51_root, first.cache)
    monkeypatch.setattr(job, "usual_clips_per_shard", lambda clips, size: 4)
    (tmp_path / "cache/job.json").unlink()
    assert begin().pending(hmdb51_root) == [first.plans[2]]
    (tmp_path / "cache/job.json").unlink()
    with pytest.raises(ValueError, match="clips_per_shard is 64 there and 9 here"):
        begin(clips_per_shard=9)
    (tmp_path / "cache/job.json").unlink()
    monkeypatch.setattr(job, "CLIPS_PER_SHARD", 4)
    with pytest.raises(ValueError, match="does not belong to this frame cache"):
        begin()


def _a_moment_faster(begin: Begin, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Lets another command begin just before the next one writes."""
    write = job.write_checked_json

    def after_the_other(*arguments: Any, **how: Any) -> None:
        monkeypatch.setattr(job, "write_checked_json", write)
        begin(**options)
        write(*arguments, **how)

    monkeypatch.setattr(job, "write_checked_json", after_the_other)


def test_of_two_commands_that_begin_at_once_the_later_is_refused(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _a_moment_faster(begin, monkeypatch, frames=3)
    with pytest.raises(ValueError, match="frames is 3 there and 4 here"):
        begin()
    assert read_checked_json(tmp_path / "cache/job.json")["config"]["frames"] == 3
    begin(frames=3)


def test_of_two_commands_that_begin_the_same_both_go_on(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    _a_moment_faster(begin, monkeypatch)
    assert begin() == begin()


def test_a_cache_that_another_command_has_just_begun_is_one(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupts between the two checks of the folder."""
    check = job._count_in

    def after_the_other(*arguments: Any) -> int:
        monkeypatch.setattr(job, "_count_in", check)
        begin()
        return check(*arguments)

    monkeypatch.setattr(job, "_count_in", after_the_other)
    (tmp_path / "cache").mkdir()
    assert begin() == begin()


def test_a_disk_without_hard_links_holds_a_cache_too(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin()
    made = files_below(tmp_path / "cache")
    (tmp_path / "cache/job.json").unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    begin()
    assert files_below(tmp_path / "cache") == made
