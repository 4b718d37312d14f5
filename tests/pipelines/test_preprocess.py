"""The command end to end: bad videos, interruptions, wrong options."""

import fcntl
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.commands import commands
from pipelines.cli.console import RunError, printing_json
from pipelines.cli.options import parse, run_command
from pipelines.cli.progress_bar import Done
from pipelines.cli.video_options import DecodeOptions
from pipelines.preprocess import main, summary
from pipelines.preprocessing.make_cache import PreprocessConfig, make_cache
from stop_core.cache import CacheConfig, CacheJob, Manifest, ShardPlan, read_failures, write_shard
from stop_core.cache.files import LOCK
from stop_core.datasets import DATASETS, Clip, select_clips
from stop_core.storage.locks import locked
from stop_core.storage.paths import RemotePath
from tests.json_documents import documented
from tests.pipelines.chaos import kill_at_random, many_clips
from tests.tools import files_below

WriteVideo = Callable[..., Path]
ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "pipelines" / "preprocess.py")


def _config(root: Path, cache: Path) -> PreprocessConfig:
    return PreprocessConfig(dataset="hmdb51", data_root=root, cache=cache, frames=4, size=16)


def _command(root: Path, cache: Path) -> list[str]:
    options = f"--dataset hmdb51 --data-root {root} --cache {cache} --frames 4 --size 16"
    return [sys.executable, SCRIPT, *options.split()]


def _serially(
    job: CacheJob,
    plans: Sequence[ShardPlan],
    root: Path,
    timeout: float = 60,
) -> Iterator[Done]:
    """Replaces `decode_shards` in tests that are not about Ray."""
    for plan in plans:
        record = write_shard(plan, job.config, root, job.cache, timeout=timeout)
        yield Done(record.rows, len(record.failures))


def test_bad_videos_are_skipped_and_a_second_run_does_nothing(
    hmdb51_root: Path, tmp_path: Path, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = hmdb51_root / "hmdb51_org" / "wave"
    missing, junk, cut, *_ = sorted(folder.iterdir())
    missing.unlink()
    junk.write_text("not a video\n" * 50)
    cut.write_bytes(cut.read_bytes()[:-4000])
    config = _config(hmdb51_root, tmp_path / "cache")

    manifest = make_cache(config)

    assert sum(manifest.counts.values()) == 13
    stages = {
        f.video_id: (f.stage, f.error.partition(":")[0]) for f in read_failures(config.cache_path)
    }
    assert stages == {
        f"wave/{missing.stem}": ("find", "no such file"),
        f"wave/{junk.stem}": ("decode", "not a video that FFmpeg can open"),
        f"wave/{cut.stem}": ("decode", "truncated"),
    }
    text = summary(config, manifest)
    assert "truncated: 1" in text
    assert str(tmp_path / "cache/failures.parquet") in text
    assert f"wave/{junk.name}: not a video that FFmpeg can open" in text
    assert "stop train" not in text  # no tower takes such frames
    assert "Traceback" not in capfd.readouterr().err

    before = files_below(config.cache_path)
    assert make_cache(config) == manifest
    assert files_below(config.cache_path) == before
    assert "decoding" not in capfd.readouterr().err


@pytest.mark.parametrize("dataset", ["motion", "folder"])
def test_the_summary_names_no_command_that_would_fail(small_cache: Path, dataset: str) -> None:
    config = PreprocessConfig(dataset=dataset, data_root="d", cache="c", size=48)
    assert "next" not in summary(config, Manifest.load(small_cache))


@pytest.mark.parametrize(
    ("size", "tower"),
    [(64, "--tower tiny-64"), (224, "--tower ViT-B-32-quickgelu --pretrained openai")],
)
def test_the_next_command_of_own_clips_names_a_fitting_tower(
    small_cache: Path, size: int, tower: str
) -> None:
    config = PreprocessConfig(dataset="folder", data_root="d", cache="c", size=size)
    last = summary(config, Manifest.load(small_cache)).splitlines()[-1]
    assert last == f"next      stop train --cache c {tower}"


@pytest.mark.parametrize(("size", "tower"), [(32, ""), (64, " --tower tiny-64")])
def test_the_next_command_names_a_tower_that_takes_the_frames(
    small_cache: Path, size: int, tower: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PreprocessConfig(dataset="motion", cache="c", size=size)
    with printing_json():
        last = summary(config, Manifest.load(small_cache)).splitlines()[-1]
    assert last.endswith(f"stop train --config motion --cache c{tower}")
    document = documented("preprocess", capsys)
    assert last == f"next      {document['next']}"
    assert document["counts"] == Manifest.load(small_cache).counts


@pytest.mark.slow
def test_a_cache_is_the_same_after_random_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.preprocessing.make_cache.decode_shards", _serially)
    root = many_clips(tmp_path / "clips", 256)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    make_cache(_config(root, whole))
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    kill_at_random(root, killed, kills=1, dice=random.Random(seed))
    assert files_below(killed) == files_below(whole)


def test_retry_failed_decodes_the_failures_again(
    hmdb51_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.preprocessing.make_cache.decode_shards", _serially)
    bad = next(hmdb51_root.glob("hmdb51_org/wave/*.avi"))
    bad.write_bytes(b"broken")
    config = _config(hmdb51_root, tmp_path / "cache")
    first = make_cache(config)
    (failure,) = read_failures(config.cache_path)
    again = make_cache(replace(config, decoding=DecodeOptions(retry_failed=True)))
    assert (again.data_hash, again.shards) == (first.data_hash, first.shards)
    assert read_failures(config.cache_path) == [replace(failure, attempts=2)]


def test_another_command_waits_while_a_cache_is_made(
    hmdb51_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def while_held(job: CacheJob, *others: Any) -> Iterator[Done]:
        with (job.cache / ".lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield from _serially(job, *others)

    monkeypatch.setattr("pipelines.preprocessing.make_cache.decode_shards", while_held)
    config = _config(hmdb51_root, tmp_path / "cache")
    assert make_cache(config) == make_cache(config)
    (config.cache_path / "job.json").unlink()
    assert make_cache(config).shards, "the lock is taken for part of the cache"


def test_another_command_waits_while_a_cache_in_a_bucket_is_made(
    hmdb51_root: Path, bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def while_held(job: CacheJob, *others: Any) -> Iterator[Done]:
        with locked(job.cache / LOCK) as mine:
            assert not mine
        yield from _serially(job, *others)

    monkeypatch.setattr("pipelines.preprocessing.make_cache.decode_shards", while_held)
    config = replace(_config(hmdb51_root, Path()), cache=str(bucket / "cache"))
    manifest = make_cache(config)
    with locked(bucket / "cache" / LOCK) as mine:
        assert mine, "it is released"
        assert make_cache(config) == manifest, "a finished cache needs no lock"


def test_nothing_to_decode_is_one_sentence(hmdb51_root: Path, tmp_path: Path) -> None:
    for video in hmdb51_root.glob("hmdb51_org/*/*.avi"):
        video.unlink()
    with pytest.raises(RunError, match="none of the 16 listed clips is there, for example"):
        make_cache(_config(hmdb51_root, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_an_unwritable_cache_is_one_sentence_and_exit_code_1(
    hmdb51_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", _command(hmdb51_root, tmp_path / "file/cache")[1:])
    with pytest.raises(SystemExit) as caught:
        run_command(commands()["preprocess"])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write a cache to")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        "--dataset hmbd51",
        "--frames 0",
        "--limit 0",
        "--fold 2",  # motion has one
        "--splits training",
        "--frames 10000 --size 1000",
        "--decode-timeout 0",
        "--decode-timeout 1e10",
        "--no-such-option 1",
    ],
)
def test_a_wrong_option_is_named_with_exit_code_2(
    options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(PreprocessConfig, options.split())
    assert caught.value.code == 2
    said = capsys.readouterr()
    # The box of the message can break a long line after a hyphen.
    assert options.split()[0][:6] in said.err + said.out


def test_a_dataset_needs_a_data_root_but_a_recipe_can_name_it_without() -> None:
    config = parse(PreprocessConfig, ["--dataset", "hmdb51"])
    with pytest.raises(ValueError, match="hmdb51 needs --data-root"):
        main(config)


def test_an_unknown_dataset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of activitynet, csv.* ucf101, vatex.*'hmbd51'"):
        PreprocessConfig(dataset="hmbd51")


def test_an_unknown_sampling_is_refused_with_examples() -> None:
    with pytest.raises(ValueError, match=r"--sampling must be .*rate:1fps.*, got 'rate:1'"):
        PreprocessConfig(sampling="rate:1")


def test_the_command_of_a_cache_gives_its_options_again() -> None:
    """Class names may hold spaces and quotation marks."""
    names = ("air drumming", "massaging person's head")
    clips = [Clip(f"v{i}", "v.mp4", "train", i, name, "s") for i, name in enumerate(names)]
    selection = select_clips(clips, ("train",), names, limit=7)
    shape = {"fold": 1, "frames": 8, "size": 64}
    config = CacheConfig.of(DATASETS["kinetics"], selection, **shape, sampling="dense:4")
    program, name, *words = shlex.split(config.command("a cache"))
    assert (program, name) == ("stop", "preprocess")
    again = parse(PreprocessConfig, words)
    assert (again.dataset, again.classes, again.splits) == ("kinetics", names, ("train",))
    assert (again.shape, again.limit, again.cache) == ((8, 64), 7, "a cache")
    assert again.sampling == "dense:4"
    generated = CacheConfig.of(DATASETS["motion"], selection, **shape)
    assert "--data-root" not in generated.command("a cache")


def test_options_read_as_documented() -> None:
    line = "--dataset hmdb51 --data-root a --cache b --fold 3 --frames 8 --size 64 --limit 5"
    config = parse(
        PreprocessConfig, [*line.split(), "--classes", "wave", "clap", "--splits", "val"]
    )
    assert config.shape == (8, 64)
    assert config.fold == 3
    assert config.limit == 5
    assert config.classes == ("wave", "clap")
    assert config.splits == ("val",)
    assert config.cache_path == Path("b")
    assert config.data_path == Path("a").resolve()
    assert PreprocessConfig().shape == (6, 32)
    assert PreprocessConfig().cache_path == Path("outputs/cache/motion")
