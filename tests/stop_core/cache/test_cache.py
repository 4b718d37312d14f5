"""The whole cache: every clip is stored once, unchanged and under its own name."""

import ctypes
import json
import mmap
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import torch

from stop_core.cache import (
    CacheConfig,
    CacheJob,
    FrameCache,
    Manifest,
    View,
    mapping,
    read_failures,
    write_shard,
)
from stop_core.datasets import DATASETS, NO_LABEL, Selection, select_clips
from stop_core.decoding import decode_clip

WriteVideo = Callable[..., Path]
FRAMES, SIZE = 4, 16


def _selection(root: Path) -> Selection:
    return select_clips(DATASETS["hmdb51"].read(root, 1))


def _config(selection: Selection, **options: Any) -> CacheConfig:
    config = CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=FRAMES, size=SIZE)
    return replace(config, **options)


def _job(cache: Path, root: Path, clips_per_shard: int = 3, **options: Any) -> CacheJob:
    selection = _selection(root)
    return CacheJob.open(cache, _config(selection, **options), selection.clips, clips_per_shard)


def _make(cache: Path, root: Path, **options: Any) -> Manifest:
    job = _job(cache, root, **options)
    pending = job.pending(root)
    if pending:
        job.start()
    for plan in pending:
        write_shard(plan, job.config, root, cache)
    return job.finish()


def _tree(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


@pytest.mark.parametrize("crop", ["center", "none"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_frames_go_round_trip_and_pyarrow_reads_the_same(
    hmdb51_root: Path, tmp_path: Path, crop: str, compression: str
) -> None:
    cache = tmp_path / "cache"
    manifest = _make(cache, hmdb51_root, crop=crop, compression=compression)
    clips = {clip.video_id: clip for clip in _selection(hmdb51_root).clips}
    rows = pyarrow.dataset.dataset(cache / "data").to_table().to_pylist()
    assert sorted(row["video_id"] for row in rows) == sorted(clips)
    plain = {row["video_id"]: row for row in rows}
    for split in ("train", "val", "test"):
        cached = FrameCache(cache).split(split)
        assert len(cached) == manifest.counts[split] == len(cached.video_ids)
        frames = cached.read(range(len(cached)))
        assert frames.dtype == torch.uint8
        assert frames.shape[1:] == (FRAMES, SIZE, SIZE, 3)
        for name, label, pixels in zip(cached.video_ids, cached.labels, frames, strict=True):
            clip, row = clips[name], plain[name]
            decoded = decode_clip(hmdb51_root / clip.path, FRAMES, SIZE)
            assert np.array_equal(pixels.numpy(), decoded.frames)
            # The default view of whole frames equals the crops of the other cache.
            whole = decode_clip(hmdb51_root / clip.path, FRAMES, SIZE, crop == "center").frames
            assert row["frames"] == whole.tobytes()
            assert (row["frame_height"], row["frame_width"]) == whole.shape[1:3]
            assert (row["split"], row["label"], row["source_path"]) == (split, label, clip.path)
            assert row["frame_index"] == decoded.frame_index.tolist()
            assert row["class_name"] == manifest.class_names[label]


def test_an_open_cache_holds_no_file_open(hmdb51_root: Path, tmp_path: Path) -> None:
    """A process may have 1,024 of them, and a large cache has thousands of shards."""
    _make(tmp_path / "cache", hmdb51_root)
    before = len(list(Path("/proc/self/fd").iterdir()))
    cached = FrameCache(tmp_path / "cache").split("train")
    cached.read(range(len(cached)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_captions_go_round_trip_for_retrieval(tmp_path: Path, write_video: WriteVideo) -> None:
    lines = ["path,split,caption"]
    for i in range(5):
        write_video(tmp_path / f"v{i}.mp4", seed=i)
        split = "test" if i == 4 else "train"
        lines += [f'v{i}.mp4,{split},"one, {i}"', f"v{i}.mp4,{split},zwei {i} é"]
    (tmp_path / "clips.csv").write_text("\n".join(lines), encoding="utf-8")
    dataset, cache = DATASETS["csv-captions"], tmp_path / "cache"
    selection = select_clips(dataset.read(tmp_path, 1))
    config = CacheConfig.of(dataset, selection, fold=1, frames=FRAMES, size=SIZE)
    job = CacheJob.open(cache, config, selection.clips)
    for plan in job.plans:
        write_shard(plan, job.config, tmp_path, cache)
    job.finish()

    manifest = Manifest.load(cache)
    assert (manifest.task, manifest.class_names) == ("retrieval", ())
    assert manifest.counts == {"train": 3, "val": 1, "test": 1}
    for split in manifest.counts:
        clips = [clip for clip in selection.clips if clip.split == split]
        cached = FrameCache(cache).split(split)
        assert cached.captions == [clip.captions for clip in clips]
        assert cached.labels.tolist() == [NO_LABEL] * len(clips)


def test_a_file_that_appears_with_another_extension_is_no_other_list(
    hmdb51_root: Path, tmp_path: Path
) -> None:
    """Its shard is made again, and the cache stays the same one."""
    first = _make(tmp_path / "cache", hmdb51_root)
    video = next(hmdb51_root.glob("hmdb51_org/wave/*.avi"))
    video.rename(video.with_suffix(".mkv"))
    pending = _job(tmp_path / "cache", hmdb51_root).pending(hmdb51_root)
    assert len(pending) == 1
    assert _make(tmp_path / "cache", hmdb51_root).counts == first.counts


def test_any_order_and_repetition_of_clips_can_be_read(hmdb51_root: Path, tmp_path: Path) -> None:
    _make(tmp_path / "cache", hmdb51_root)
    cached = FrameCache(tmp_path / "cache").split("train")
    every = cached.read(range(len(cached)))
    order = [len(cached) - 1, 0, 0, 3]
    assert torch.equal(cached.read(order), every[order])
    assert cached.read([]).shape == (0, FRAMES, SIZE, SIZE, 3)
    reopened = pickle.loads(pickle.dumps(cached))
    assert torch.equal(reopened.read(order), every[order])
    for outside in (-1, len(cached)):
        with pytest.raises(IndexError, match=f"clip {outside} of {len(cached)}"):
            cached.read([outside])


def test_a_second_run_has_nothing_to_do(hmdb51_root: Path, tmp_path: Path) -> None:
    first = _make(tmp_path / "cache", hmdb51_root)
    before = _tree(tmp_path / "cache")
    assert _job(tmp_path / "cache", hmdb51_root).pending(hmdb51_root) == []
    assert _make(tmp_path / "cache", hmdb51_root) == first
    assert _tree(tmp_path / "cache") == before


def _killed_at(write: int, cache: Path, root: Path) -> bool:
    """Makes the cache in a child process, killed at one of its fsync calls; True if it was."""
    child = os.fork()
    if child == 0:
        calls, sync = iter(range(1000)), os.fsync

        def fsync_or_die(descriptor: int) -> None:
            if next(calls) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(descriptor)

        os.fsync = fsync_or_die
        try:
            _make(cache, root)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_write_the_job_goes_on_to_the_same_bytes(
    hmdb51_root: Path, tmp_path: Path
) -> None:
    (hmdb51_root / _selection(hmdb51_root).clips[1].path).write_bytes(b"broken")
    whole = tmp_path / "whole"
    manifest = _make(whole, hmdb51_root)
    kills = 0
    for write in range(0, 1000, 5):
        cache = tmp_path / f"killed{write}"
        if not _killed_at(write, cache, hmdb51_root):
            break
        kills += 1
        # Whatever shard has appeared under its name is already the final one.
        for shard in (cache / "data").glob("[!.]*"):
            assert shard.read_bytes() == (whole / "data" / shard.name).read_bytes()
        assert not (cache / "manifest.json").exists() or FrameCache(cache).manifest == manifest
        _make(cache, hmdb51_root)
        assert _tree(cache) == _tree(whole)
    assert kills > 5


def test_a_changed_source_is_made_again_and_nothing_else(
    hmdb51_root: Path, tmp_path: Path, write_video: WriteVideo
) -> None:
    before = _make(tmp_path / "cache", hmdb51_root)
    clip = _selection(hmdb51_root).clips[0]
    write_video(hmdb51_root / clip.path, seed=99)
    job = _job(tmp_path / "cache", hmdb51_root)
    (stale,) = job.pending(hmdb51_root)
    assert clip in stale.clips
    after = _make(tmp_path / "cache", hmdb51_root)
    assert after.data_hash != before.data_hash
    changed = [a.name for a, b in zip(after.shards, before.shards, strict=True) if a != b]
    assert changed == [stale.name]


def test_bad_videos_become_failures_with_a_reason(hmdb51_root: Path, tmp_path: Path) -> None:
    clips = _selection(hmdb51_root).clips
    paths = [hmdb51_root / clip.path for clip in clips]
    paths[0].unlink()
    paths[1].write_bytes(b"")
    paths[2].write_text("not a video\n" * 50)
    paths[5].write_bytes(paths[5].read_bytes()[:-4000])
    manifest = _make(tmp_path / "cache", hmdb51_root)
    failures = {
        f.video_id: (f.stage, f.error.partition(":")[0]) for f in read_failures(tmp_path / "cache")
    }
    assert failures == {
        clips[0].video_id: ("find", "no such file"),
        clips[1].video_id: ("decode", "the file is empty"),
        clips[2].video_id: ("decode", "not a video that FFmpeg can open"),
        clips[5].video_id: ("decode", "truncated"),
    }
    assert manifest.failures == 4
    assert sum(manifest.counts.values()) == len(clips) - 4
    cached = {n for s in manifest.counts for n in FrameCache(tmp_path / "cache").split(s).video_ids}
    assert cached == {clip.video_id for clip in clips} - set(failures)


def test_a_shard_without_any_clip_leaves_no_file(hmdb51_root: Path, tmp_path: Path) -> None:
    for clip in _selection(hmdb51_root).clips:
        if clip.split == "val":
            (hmdb51_root / clip.path).unlink()
    manifest = _make(tmp_path / "cache", hmdb51_root)
    assert manifest.counts["val"] == 0
    assert not list((tmp_path / "cache/data").glob("val*"))
    empty = FrameCache(tmp_path / "cache").split("val")
    assert len(empty) == 0
    assert empty.labels.shape == (0,)
    assert len(empty.read([])) == 0


def test_the_decoder_that_is_asked_for_serves_every_row(hmdb51_root: Path, tmp_path: Path) -> None:
    usual, selection = _config(_selection(hmdb51_root)), _selection(hmdb51_root)
    for decoder in ("pyav", "decord"):
        other = replace(usual, decoder=decoder)
        cache = tmp_path / decoder
        _make(cache, hmdb51_root, decoder=decoder)
        rows = pyarrow.dataset.dataset(cache / "data").to_table(columns=["decoder"])
        # PyAV decodes files for which decord can return other frames, such as AVI.
        assert all(served.startswith("PyAV") for served in rows["decoder"].to_pylist())
        assert CacheConfig.from_dict(json.loads(json.dumps(other.to_dict()))) == other
        assert f"--decoder {decoder}" in other.command("DIR")
        with pytest.raises(ValueError, match=f"decoder is {decoder} there and auto here"):
            CacheJob.open(cache, usual, selection.clips)


def test_a_cache_without_a_choice_was_made_with_the_default(hmdb51_root: Path) -> None:
    config = _config(_selection(hmdb51_root))
    assert (config.decoder, config.sampling) == ("auto", "segments")
    assert not {"decoder", "sampling"} & set(config.to_dict())
    assert CacheConfig.from_dict(config.to_dict()) == config


def test_a_cache_is_of_one_sampling(hmdb51_root: Path, tmp_path: Path) -> None:
    usual, selection = _config(_selection(hmdb51_root)), _selection(hmdb51_root)
    manifest = _make(tmp_path / "dense", hmdb51_root, sampling="dense:2")
    assert manifest.config == replace(usual, sampling="dense:2")
    assert "--sampling dense:2" in manifest.config.command("DIR")
    assert manifest.data_hash != _make(tmp_path / "usual", hmdb51_root).data_hash
    rows = pyarrow.dataset.dataset(tmp_path / "dense/data").to_table(columns=["frame_index"])
    assert rows["frame_index"].to_pylist() == [[1, 3, 5, 7]] * len(selection.clips)  # of 9
    with pytest.raises(ValueError, match="sampling is dense:2 there and segments here"):
        CacheJob.open(tmp_path / "dense", usual, selection.clips)
    clips = FrameCache(tmp_path / "dense").split("train")
    assert torch.equal(clips.read([0], View(frames=2)), clips.read([0])[:, 1:3])
    with pytest.raises(ValueError, match="sampling: not a sampling, got 'dense'"):
        CacheConfig.from_dict(usual.to_dict() | {"sampling": "dense"})


def test_a_missing_or_unfinished_cache_names_the_command(hmdb51_root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match=r"`stop preprocess .*--cache"):
        FrameCache(cache)
    job = _job(cache, hmdb51_root)
    write_shard(job.plans[0], job.config, hmdb51_root, cache)
    command = "`stop preprocess --dataset hmdb51 .*--cache .*/cache --fold 1 --frames 4 --size 16"
    with pytest.raises(ValueError, match=f"unfinished \\(1 shards are complete, .*{command}"):
        FrameCache(cache)
    with pytest.raises(ValueError, match="shards are not complete"):
        job.finish()


def test_a_split_or_shard_that_is_not_there_is_named(hmdb51_root: Path, tmp_path: Path) -> None:
    _make(tmp_path / "cache", hmdb51_root)
    cache = FrameCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="no split 'valid', only train, val, test"):
        cache.split("valid")
    shard = tmp_path / "cache/data" / f"{cache.manifest.shards[0].name}.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        cache.split("train").read([0])
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is gone"):
        cache.split("train").read([0])


def test_labels_and_captions_need_no_shard_and_are_those_of_the_shards(
    hmdb51_root: Path, tmp_path: Path
) -> None:
    (next(hmdb51_root.glob("hmdb51_org/*/*.avi"))).write_bytes(b"not a video")
    manifest = _make(tmp_path / "cache", hmdb51_root)
    by_file = {split: FrameCache(tmp_path / "cache").split(split) for split in manifest.counts}
    older = replace(manifest, clips_sha256="")  # a cache of an earlier version
    for split, clips in by_file.items():
        shards = type(clips)(clips.path, older, split)
        assert torch.equal(clips.labels, shards.labels)
        assert clips.video_ids == shards.video_ids
        assert clips.captions == shards.captions
    shutil.rmtree(tmp_path / "cache/data")
    again = FrameCache(tmp_path / "cache").split("train")
    assert len(again.labels) == len(again) > 0


def test_other_labels_than_those_of_the_manifest_are_refused(
    hmdb51_root: Path, tmp_path: Path
) -> None:
    _make(tmp_path / "cache", hmdb51_root)
    file = tmp_path / "cache/clips.parquet"
    whole = file.read_bytes()
    rows = pd.read_parquet(file)
    rows.assign(label=0).to_parquet(file)
    for spoil in (lambda: None, file.unlink):
        spoil()
        with pytest.raises(ValueError, match=r"clips.parquet is not .*: delete .*manifest.json"):
            _ = FrameCache(tmp_path / "cache").split("train").labels
    (tmp_path / "cache/manifest.json").unlink()
    _make(tmp_path / "cache", hmdb51_root)
    assert file.read_bytes() == whole


def test_views_are_parts_of_what_is_cached(hmdb51_root: Path, tmp_path: Path) -> None:
    _make(tmp_path / "cache", hmdb51_root, crop="none", compression="zstd")
    cached = FrameCache(tmp_path / "cache").split("train")
    every, order = cached.read(range(len(cached))), [3, 1]
    few = cached.read(order, View(frames=2, size=8))
    assert torch.equal(few, every[order][:, [1, 3], 4:12, 4:12])
    view = View(frames=2, size=8, jitter=True, random_crop=True, seed=1, epoch=2)
    seen = cached.read(order, view)
    assert not torch.equal(seen, few)
    # The same clip in another batch, and into a buffer that is there already.
    buffer = torch.empty(1, 2, 8, 8, 3, dtype=torch.uint8)
    assert cached.read([1], view, out=buffer) is buffer
    assert torch.equal(buffer[0], seen[1])
    with pytest.raises(ValueError, match="--frames 5"):
        cached.read([0], View(frames=5))
    with pytest.raises(ValueError, match="not uint8"):
        cached.read([0, 1], view, out=buffer)


def test_an_older_format_is_refused_in_one_sentence(hmdb51_root: Path, tmp_path: Path) -> None:
    _make(tmp_path / "cache", hmdb51_root)
    path = tmp_path / "cache/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(ValueError, match=r"another version .*format 1, not 2.*another --cache"):
        FrameCache(tmp_path / "cache")


def test_pandas_and_duckdb_read_the_shards(hmdb51_root: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    _make(tmp_path / "cache", hmdb51_root, crop="none")
    pattern = str(tmp_path / "cache/data/*.parquet")
    whole = "octet_length(frames) = 4 * frame_height * frame_width * 3"
    assert duckdb.sql(f"select sum({whole}) from '{pattern}'").fetchall() == [(16,)]
    rows = pd.read_parquet(tmp_path / "cache/data")
    frames = FrameCache(tmp_path / "cache").split("val").read([0])[0]
    clip = rows[rows.split == "val"].iloc[0]
    pixels = np.frombuffer(clip.frames, np.uint8).reshape(4, clip.frame_height, clip.frame_width, 3)
    left = (clip.frame_width - SIZE) // 2
    assert np.array_equal(pixels[:, :, left : left + SIZE], frames.numpy())


def test_hugging_face_datasets_read_the_shards(
    hmdb51_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    _make(tmp_path / "cache", hmdb51_root)
    files = {
        split: str(tmp_path / "cache/data" / f"{split}-*.parquet") for split in ("train", "val")
    }
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hf"))
    for split in files:
        cached = FrameCache(tmp_path / "cache").split(split)
        rows = loaded[split]
        assert rows["video_id"][:] == cached.video_ids
        assert rows["label"][:] == cached.labels.tolist()
        every = b"".join(rows["frames"][:])
        assert every == cached.read(range(len(cached))).numpy().tobytes()


@pytest.mark.parametrize("crop", ["center", "none"])
def test_a_read_announces_the_pages_that_it_needs_unless_they_are_in_memory(
    crop: str, hmdb51_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path / "cache", hmdb51_root, crop=crop)
    clips = FrameCache(tmp_path / "cache").split("train")
    whole, part = clips.read([1, 0]), View(frames=1, size=8)
    announced: list[int] = []
    is_in_memory = False

    def mincore(address: object, size: object, found: ctypes.Array[ctypes.c_char]) -> None:
        found[0] = bytes([is_in_memory])

    system = SimpleNamespace(
        mincore=mincore, madvise=lambda a, size, _: announced.append(size.value)
    )
    monkeypatch.setattr(mapping, "_LIBC", system)
    assert torch.equal(clips.read([1, 0]), whole)
    assert sum(announced) >= whole.nbytes
    announced.clear()
    clips.read([1, 0], part)
    assert len(announced) == 2
    assert all(size < 8 * 3 * 1024 + mmap.PAGESIZE for size in announced)
    announced.clear()
    is_in_memory = True
    clips.read([1, 0], part)
    assert not announced
