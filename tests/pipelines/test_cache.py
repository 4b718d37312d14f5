"""cache.py prints the contents of a cache, and exports equal the cache."""

from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from pipelines.cache import CacheToolConfig
from pipelines.cli.console import RunError
from pipelines.cli.options import parse
from stop_core.cache import CacheConfig, CacheJob, FrameCache, write_shard
from stop_core.datasets import DATASETS, select_clips


@pytest.fixture
def cache(hmdb51_root: Path, tmp_path: Path) -> Path:
    selection = select_clips(DATASETS["hmdb51"].read(hmdb51_root, 1))
    (hmdb51_root / selection.clips[0].path).unlink()
    config = CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=3, size=16, crop="none")
    job = CacheJob.open(tmp_path / "cache", config, selection.clips)
    for plan in job.plans:
        write_shard(plan, config, hmdb51_root, job.cache)
    job.finish()
    return tmp_path / "cache"


def _run(*arguments: object) -> None:
    parse(CacheToolConfig, [str(argument) for argument in arguments]).command.run()


def test_info_counts_clips_and_failures(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("info", cache)
    text = capsys.readouterr().out
    counts = FrameCache(cache).manifest.counts
    assert sum(counts.values()) == 15
    assert f"15 ({counts['train']} train, {counts['val']} val, 4 test)" in text
    assert "3 frames of 16 px, whole (short side), compression none" in text
    assert "1 no such file" in text
    (wave,) = [line.split() for line in text.splitlines() if line.strip().startswith("wave")]
    assert sum(map(int, wave[1:])) == 8


def test_info_of_clips_with_captions_counts_these_and_no_class(
    captioned_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("info", captioned_cache)
    text = capsys.readouterr().out
    assert "captions     3 (1 train, 1 val, 1 test)" in text
    assert text.splitlines()[-1].startswith("captions")


def test_exported_parquet_holds_the_chosen_rows(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--splits", "test", "--classes", "wave", "--compression", "snappy")
    _run("export", cache, "--to", out, *options)
    every = pyarrow.dataset.dataset(cache / "data").to_table().to_pylist()
    exported = pyarrow.dataset.dataset(out).to_table().to_pylist()
    chosen = [row for row in every if (row["split"], row["class_name"]) == ("test", "wave")]
    assert exported == chosen
    assert len(chosen) == 2
    with pytest.raises(ValueError, match="is not an empty folder: choose another --to"):
        _run("export", cache, "--to", out)
    with pytest.raises(ValueError, match="has no class 'fly'"):
        _run("export", cache, "--to", tmp_path / "other", "--classes", "fly")
    assert not (tmp_path / "other").exists()


def test_exported_pictures_are_the_frames(cache: Path, tmp_path: Path) -> None:
    _run("export", cache, "--to", tmp_path / "out", "--format", "png", "--limit", "1")
    pictures = sorted((tmp_path / "out").rglob("*.png"))
    assert len(pictures) == 3 * 3
    for row in pyarrow.dataset.dataset(cache / "data").to_table().to_pylist():
        folder = tmp_path / "out" / row["split"] / row["video_id"]
        if folder.exists():
            shape = (3, row["frame_height"], row["frame_width"], 3)
            frames = np.frombuffer(row["frames"], np.uint8).reshape(shape)
            for index, frame in zip(row["frame_index"], frames, strict=True):
                assert np.array_equal(np.asarray(Image.open(folder / f"{index:06d}.png")), frame)


def test_the_sheet_shows_frames_of_the_cache(cache: Path, tmp_path: Path) -> None:
    to = tmp_path / "sheet.png"
    _run("sheet", cache, "--to", to, "--split", "test", "--clips", "2", "--frames", "2")
    sheet = np.asarray(Image.open(to))
    clips = FrameCache(cache).split("test")
    last = clips.read([3])[0, 2].numpy().repeat(6, axis=0).repeat(6, axis=1)
    assert np.array_equal(sheet[-30 - 96 : -30, -16 - 96 : -16], last)
    with pytest.raises(ValueError, match="no split 'valid'"):
        _run("sheet", cache, "--to", to, "--split", "valid")


@pytest.mark.parametrize("options", ["", "info", "sheet x --clips 0", "export x", "verify ftp://x"])
def test_a_wrong_command_line_says_so(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ValueError, RunError)) as caught:
        _run(*options.split())
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
