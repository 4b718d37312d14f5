"""Predictions equal the evaluation, a bad file is a row, and an interruption loses nothing."""

import errno
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipelines.cli import folders
from pipelines.cli.console import RunError, printing_json
from pipelines.cli.folders import alone_in
from pipelines.cli.video_options import WorkerOptions
from pipelines.inference import job as job_module
from pipelines.inference.job import VideoJob
from pipelines.inference.model_choice import ModelChoice
from pipelines.inference.stages import BothStages, FrameReader, Work
from pipelines.inference.video_list import Video, list_videos
from pipelines.predict import PredictConfig, main
from stop_core.cache import FrameCache
from stop_core.storage.paths import RemotePath
from stop_core.trained_model.files import read_record
from stop_core.trained_model.model import TrainedModel
from tests.caches import write_cache
from tests.conftest import WriteVideo
from tests.json_documents import documented


@pytest.fixture
def videos(tmp_path: Path, write_video: WriteVideo) -> Path:
    """Five videos in two folders, one of them broken, and a text file."""
    root = tmp_path / "videos"
    for seed in range(4):
        write_video(root / f"class{seed % 2}" / f"v{seed}.mp4", frames=7 + seed, seed=seed)
    whole = (root / "class0" / "v0.mp4").read_bytes()
    (root / "class0" / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("no video")
    return root


@pytest.fixture
def work(model_folder: Path) -> Work:
    how = read_record(model_folder).preprocessing
    return Work(ModelChoice(checkpoint=model_folder), how, "labels", top=3)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the videos that were read, with repeats."""
    names: list[str] = []
    read = FrameReader.read

    def noted(self: FrameReader, videos: list[Video]) -> Any:
        names.extend(Path(video.name).name for video in videos)
        return read(self, videos)

    monkeypatch.setattr(FrameReader, "read", noted)
    return names


def test_the_prediction_of_a_file_equals_the_evaluation_of_its_cached_row(
    videos: Path, work: Work, model_folder: Path, tmp_path: Path
) -> None:
    (videos / "class0" / "broken.mp4").unlink()
    trained = TrainedModel.load(model_folder)
    how = trained.preprocessing
    folder = tmp_path / "cache"
    cache = FrameCache(write_cache("folder", videos, folder, frames=how.frames, size=how.size))
    expected = {}
    for split in cache.manifest.counts:
        clips = cache.split(split)
        for number, name in enumerate(clips.video_ids):
            logits = trained.logits(clips.read([number]))[0]
            expected[name] = torch.softmax(logits, -1)
    both = BothStages(work, threads=None)
    part = {"path": str(tmp_path / "p"), "videos": [asdict(v) for v in list_videos([str(videos)])]}
    rows = both.model.rows(both.reader(part))
    both.close()
    assert len(rows) == len(expected) == 4
    for row in rows:
        found = dict(zip(row["labels"], row["probabilities"], strict=True))
        probabilities = expected[str(Path(row["video"]).relative_to(videos))]
        for label, probability in zip(trained.labels or (), probabilities.tolist(), strict=True):
            assert found[label] == pytest.approx(probability, abs=1e-6)


@pytest.mark.usefixtures("decoded_here")
def test_a_broken_video_is_a_row_and_affects_no_other(
    videos: Path, work: Work, tmp_path: Path
) -> None:
    every = list_videos([str(videos)])
    together = VideoJob(tmp_path / "all", work).run(every, WorkerOptions(0))
    rows = together.to_pylist()
    assert [Path(row["video"]).name for row in rows if row["error"]] == ["broken.mp4"]
    good = [video for video in every if not video.name.endswith("broken.mp4")]
    alone = VideoJob(tmp_path / "good", work).run(good, WorkerOptions(0))
    _check_alike([row for row in rows if not row["error"]], alone.to_pylist())


@pytest.mark.usefixtures("decoded_here")
def test_finished_videos_are_not_repeated_and_changed_ones_are(
    videos: Path, work: Work, tmp_path: Path, seen: list[str], write_video: WriteVideo
) -> None:
    job = VideoJob(tmp_path / "parts", work)
    first = job.run(list_videos([str(videos / "class0")]), WorkerOptions(0))
    assert sorted(seen) == ["broken.mp4", "v0.mp4", "v2.mp4"]
    seen.clear()
    both = job.run(list_videos([str(videos)]), WorkerOptions(0))
    assert sorted(seen) == ["v1.mp4", "v3.mp4"]
    assert [row for row in both.to_pylist() if "class0" in row["video"]] == first.to_pylist()
    seen.clear()
    job.run(list_videos([str(videos)]), WorkerOptions(0), retry_failed=True)
    assert seen == ["broken.mp4"]
    seen.clear()
    write_video(videos / "class0" / "broken.mp4", frames=9, seed=9)
    mended = job.run(list_videos([str(videos)]), WorkerOptions(0))
    assert seen == ["broken.mp4"]
    assert mended["error"].null_count == 5


@pytest.mark.usefixtures("decoded_here")
@pytest.mark.parametrize("between_stages", [False, True])
def test_resume_repeats_no_finished_part_and_loses_no_row(
    between_stages: bool,
    videos: Path,
    work: Work,
    tmp_path: Path,
    seen: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_module, "_MOST_A_PART", 2)
    every = list_videos([str(videos)])
    expected = VideoJob(tmp_path / "whole", work).run(every, WorkerOptions(0))
    seen.clear()
    # The end of either stage: frames are read but not used, or rows written but not renamed yet.
    owner, name = (FrameReader, "read") if between_stages else (pq, "write_table")
    work_of_stage: Callable[..., Any] = getattr(owner, name)

    def killed(*arguments: Any) -> Any:
        done = work_of_stage(*arguments)
        if "v2.mp4" in seen:
            raise KeyboardInterrupt
        return done

    job = VideoJob(tmp_path / "parts", work)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            job.run(every, WorkerOptions(0))
    complete = {Path(name).name for name in job.done()["video"].to_pylist()}
    assert complete
    assert "v2.mp4" not in complete
    seen.clear()
    _check_alike(job.run(every, WorkerOptions(0)).to_pylist(), expected.to_pylist())
    assert complete.isdisjoint(seen)


def test_ray_workers_return_the_rows_of_one_process(
    videos: Path, work: Work, tmp_path: Path, local_ray: None
) -> None:
    every = list_videos([str(videos)])
    here = VideoJob(tmp_path / "here", work).run(every, WorkerOptions(0))
    there = VideoJob(tmp_path / "there", work).run(every, WorkerOptions(1))
    _check_alike(here.to_pylist(), there.to_pylist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_worker": 0.5, "device": "cpu"}, "leave one out"),
        ({"gpus_per_worker": 2}, "at most 1"),
        ({"gpus_per_worker": 0}, "above 0"),
        ({"workers": -1}, "negative"),
    ],
)
def test_contradicting_worker_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerOptions(**options)


@pytest.mark.usefixtures("decoded_here")
def test_remote_videos_are_downloaded_one_by_one_and_store_failures_are_not_rows(
    videos: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    here: set[Path] = set()

    def download(self: RemotePath, local: Path) -> None:
        here.add(local)
        together.append(sum(path.exists() for path in here))
        if self.name == "gone.mp4":
            raise FileNotFoundError("no such object")
        if self.name == "full.mp4":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.name == "silent.mp4":
            raise OSError("NETWORK_CONNECTION")
        shutil.copyfile(videos / "class0" / "v0.mp4", local)

    def exists(self: RemotePath) -> bool:
        if self.name == "silent.mp4":
            raise OSError("NETWORK_CONNECTION")
        return self.name != "gone.mp4"

    monkeypatch.setattr(RemotePath, "download", download)
    monkeypatch.setattr(RemotePath, "exists", exists)
    names = ["a.mp4", "gone.mp4", *(f"{number}.mp4" for number in range(5))]
    job = VideoJob(tmp_path / "parts", work)
    rows = job.run([Video(f"s3://bucket/{name}") for name in names], WorkerOptions(0)).to_pylist()
    assert ["gone" in row["video"] for row in rows] == [row["error"] is not None for row in rows]
    assert max(together) <= 2  # the one that is decoded, and the next
    for name, reason in (("full.mp4", "No space"), ("silent.mp4", "NETWORK_CONNECTION")):
        with pytest.raises(RunError, match=reason):
            job.run([Video(f"s3://bucket/{name}")], WorkerOptions(0))
    assert not any("full" in name or "silent" in name for name in job.done()["video"].to_pylist())


@pytest.mark.usefixtures("decoded_here")
def test_a_second_command_of_the_same_job_waits_for_the_first(
    videos: Path, work: Work, tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(folders, "say", lambda text: waiting.set())
    job, every = VideoJob(tmp_path / "parts", work), list_videos([str(videos / "class1")])
    job.folder.mkdir()
    writing = job.folder / ".part-of-the-first.tmp"
    writing.touch()
    with ThreadPoolExecutor() as pool:
        with alone_in(job.folder):
            second = pool.submit(job.run, every, WorkerOptions(0))
            assert waiting.wait(60)
            assert not second.done()
            assert writing.exists()
        assert len(second.result(60)) == len(seen) == 2


def _check_alike(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Asserts equal rows, up to rounding: batches differ."""
    for one, other in zip(some, others, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
        assert {**one, "probabilities": 0} == {**other, "probabilities": 0}


def _config(videos: Path, tmp_path: Path, **options: Any) -> PredictConfig:
    return PredictConfig(videos=(str(videos),), output=tmp_path / "outputs", **options)


@pytest.mark.usefixtures("decoded_here")
def test_every_format_has_the_same_rows(
    videos: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelChoice(checkpoint=model_folder)
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    rows = main(_config(videos, tmp_path, model=model, to=lines, top=2))
    main(_config(videos, tmp_path, model=model, to=table, top=2))
    assert [json.loads(line) for line in lines.read_text().splitlines()] == rows
    read = pq.read_table(table)
    assert [{**row, "labels": row["labels"] or []} for row in read.to_pylist()] == rows
    assert read.schema.metadata[b"stop.run"] == b"a run"
    capsys.readouterr()
    main(_config(videos, tmp_path, model=model, top=2))
    printed = capsys.readouterr()
    assert "broken.mp4  failed" in printed.out
    assert f"{rows[1]['probability']:.1%}  {rows[1]['label']}" in printed.out
    assert "1 of 5 videos failed" in printed.err
    with printing_json():
        main(_config(videos, tmp_path, model=model, top=2))
    assert documented("predict", capsys)["rows"] == rows


@pytest.mark.usefixtures("decoded_here")
def test_labels_of_the_command_line_replace_those_of_the_model(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    for named in (ModelChoice(checkpoint=model_folder), ModelChoice(tower="tiny", frames=4)):
        model = ModelChoice(**{**vars(named), "labels": ("yellow ring", "red triangle")})
        rows = main(_config(videos, tmp_path, model=model))
        good = [row for row in rows if row["error"] is None]
        assert len(good) == 4
        for row in good:
            assert set(row["labels"]) == {"yellow ring", "red triangle"}
            assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-6)


def test_listed_videos_are_sorted_and_unique_and_missing_ones_are_named(videos: Path) -> None:
    names = [video.name for video in list_videos([str(videos), str(videos / "class0/v0.mp4")])]
    assert names == sorted(set(names))
    assert not any(name.endswith(".txt") for name in names)
    assert names == [v.name for v in list_videos([str(videos), str(videos / "class1")])]
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        list_videos([str(videos / "none.mp4")])
    (videos / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        list_videos([str(videos / "empty")])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"checkpoint": Path("a"), "tower": "tiny"}, "give one of them"),
        ({"frames": 4}, "--tower"),
        ({"tower": "tiny", "frames": 0}, "at least 1"),
        ({"tower": "tiny", "templates": ("a {}",)}, "--labels"),
    ],
)
def test_contradicting_model_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelChoice(**options)


@pytest.mark.usefixtures("decoded_here")
def test_a_missing_model_or_label_is_refused_with_the_option(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--checkpoint"):
        main(_config(videos, tmp_path))
    with pytest.raises(RunError, match="--labels"):
        main(_config(videos, tmp_path, model=ModelChoice(tower="tiny")))


def test_writing_a_table_to_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table is only printed: .* \.jsonl or \.parquet"):
        PredictConfig(videos=("v.mp4",), to=tmp_path / "out.txt", format="table")


def test_files_of_a_model_choice_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pt").touch()
    (tmp_path / "sentences.yaml").touch()
    monkeypatch.chdir(tmp_path)
    of_files = ModelChoice(
        tower="tiny", pretrained="weights.pt", labels=("a",), templates=("sentences.yaml",)
    ).found(tmp_path)
    assert of_files.pretrained == str(tmp_path / "weights.pt")
    assert of_files.templates == (str(tmp_path / "sentences.yaml"),)
    named = ModelChoice(tower="tiny", pretrained="openai", labels=("a",), templates=("a {}",))
    assert named.found(tmp_path) == named


def test_a_model_choice_survives_json(model_folder: Path, tmp_path: Path) -> None:
    choice = ModelChoice(checkpoint=model_folder, labels=("a", "b"), templates=("a {}",))
    assert ModelChoice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice
