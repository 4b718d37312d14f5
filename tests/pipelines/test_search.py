"""A video finds itself, files and their cache agree, and other models are refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import search
from pipelines.cli.console import RunError, printing_json
from pipelines.cli.video_options import WorkerOptions
from pipelines.cluster import devices
from pipelines.index import IndexConfig
from pipelines.index import main as make_index
from pipelines.inference.model_choice import ModelChoice
from pipelines.search import SearchConfig, main
from stop_core.storage import paths
from stop_core.trained_model.index import SearchIndex, write_index
from stop_core.trained_model.model import TrainedModel
from tests.caches import write_cache
from tests.conftest import WriteVideo
from tests.json_documents import documented

pytestmark = pytest.mark.usefixtures("decoded_here")


@pytest.fixture
def videos(tmp_path: Path, write_video: WriteVideo) -> Path:
    for seed in range(4):
        write_video(tmp_path / f"videos/a/v{seed}.mp4", frames=8, seed=seed)
    (tmp_path / "videos/a/broken.mp4").write_bytes(b"not a video")
    return tmp_path / "videos"


def _index(tmp_path: Path, model: Path, name: str = "index", **options: Any) -> Path:
    folder = tmp_path / name
    choice = ModelChoice(checkpoint=model)
    make_index(
        IndexConfig(
            index=folder, model=choice, workers=WorkerOptions(0), output=tmp_path, **options
        )
    )
    return folder


def _cache(videos: Path, folder: Path, frames: int, size: int) -> Path:
    return write_cache("folder", videos, folder, frames=frames, size=size)


def test_a_video_finds_itself_and_text_scores_are_dot_products(
    videos: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _index(tmp_path, model_folder, videos=(str(videos),))
    assert "failed  1" in capsys.readouterr().out
    for seed in range(4):
        video = videos / f"a/v{seed}.mp4"
        found = main(SearchConfig(video=video, index=folder, output=tmp_path))
        assert found[0]["video"] == str(video)
        assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    sheet = tmp_path / "sheet.png"
    found = main(SearchConfig(text="a red square", index=folder, output=tmp_path, sheet=sheet))
    text_E = TrainedModel.load(model_folder).embed_texts(["a red square"])[0].numpy()
    expected = np.sort(SearchIndex(folder).embeddings_ME @ text_E)[::-1]
    assert [one["score"] for one in found] == pytest.approx(expected.tolist(), abs=1e-6)
    with Image.open(sheet) as picture:
        assert picture.height > 4 * 160


def test_a_deleted_file_is_found_until_the_next_index(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = _index(tmp_path, model_folder, videos=(str(videos),))
    (videos / "a/v1.mp4").unlink()
    found = main(SearchConfig(text="a", index=folder, output=tmp_path))
    assert len(found) == 4
    _index(tmp_path, model_folder, videos=(str(videos),))
    assert len(SearchIndex(folder).videos) == 3


def test_indexes_of_a_cache_and_of_its_files_are_equal(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    (videos / "a/broken.mp4").unlink()
    how = TrainedModel.load(model_folder).preprocessing
    cache = _cache(videos, tmp_path / "cache", how.frames, how.size)
    of_cache = SearchIndex(_index(tmp_path, model_folder, "one", cache=str(cache)))
    of_files = SearchIndex(_index(tmp_path, model_folder, "two", videos=(str(videos),)))
    by_name = {
        str(Path(video["video"]).relative_to(videos)): vector
        for video, vector in zip(of_files.videos, of_files.embeddings_ME, strict=True)
    }
    for video, vector in zip(of_cache.videos, of_cache.embeddings_ME, strict=True):
        np.testing.assert_allclose(vector, by_name[video["video"]], atol=1e-6)
    found = main(SearchConfig(text="a", index=of_cache.folder, output=tmp_path, top=2))
    assert len(found) == 2


def test_a_cache_with_other_frames_or_no_clip_is_refused(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    how = TrainedModel.load(model_folder).preprocessing
    more = _cache(videos, tmp_path / "more", how.frames + 2, how.size)
    with pytest.raises(RunError, match=r"has 6 frames .* the model needs 4 frames .*--frames 4"):
        _index(tmp_path, model_folder, cache=str(more))
    larger = _cache(videos, tmp_path / "larger", how.frames, 48)
    with pytest.raises(RunError, match=r"squares of 48 pixels.*squares of 32 pixels.*--size 32"):
        _index(tmp_path, model_folder, cache=str(larger))
    dense = tmp_path / "dense"
    write_cache("folder", videos, dense, frames=how.frames, size=how.size, sampling="dense:2")
    with pytest.raises(RunError, match=r"as dense:2\).* as segments\).*--sampling segments"):
        _index(tmp_path, model_folder, cache=str(dense))
    alike = _cache(videos, tmp_path / "alike", how.frames, how.size)
    with pytest.raises(RunError, match="no clip of test: give other --splits"):
        _index(tmp_path, model_folder, cache=str(alike), splits=("test",))


def test_the_sheet_has_the_frames_of_the_clip_after_the_cache_changed(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    (videos / "a/broken.mp4").unlink()
    how = TrainedModel.load(model_folder).preprocessing
    cache = _cache(videos, tmp_path / "cache", how.frames, how.size)
    index = SearchIndex(_index(tmp_path, model_folder, cache=str(cache)))
    listed = index.videos
    frames = search._frames(index, listed, False)
    before = {row["video"]: found for row, found in zip(listed, frames, strict=True)}
    shutil.rmtree(cache)
    (videos / "a/v1.mp4").unlink()
    _cache(videos, cache, how.frames, how.size)
    for row, found in zip(listed, search._frames(index, listed, False), strict=True):
        if row["video"].endswith("v1.mp4"):
            assert "no longer" in str(found)
        else:
            np.testing.assert_array_equal(found, before[row["video"]])
    shutil.rmtree(cache)
    assert len(main(SearchConfig(text="a", index=index.folder, output=tmp_path))) == 4


@pytest.mark.parametrize("of_cache", [False, True])
def test_remote_videos_of_an_index_are_downloaded_only_with_fetch(
    of_cache: bool,
    videos: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = _index(tmp_path, model_folder, videos=(str(videos),))
    index = SearchIndex(folder)
    rows = pq.read_table(folder / "embeddings.parquet")
    there = [
        f"{scheme}://bucket/{i}.mp4?endpoint_override=127.0.0.1:9"
        for i, scheme in enumerate(["s3", "gs", "http", "s3"])
    ]
    if not of_cache:
        rows = rows.set_column(rows.column_names.index("video"), "video", pa.array(there))
    rows = rows.append_column("error", pa.nulls(len(rows), pa.string()))
    write_index(folder, rows, replace(index.info, cache=there[0] if of_cache else None))
    asked: list[str] = []

    def connect(scheme: str, bucket: str, query: str) -> None:
        asked.append(f"{scheme}://{bucket}?{query}")
        raise OSError("away")

    monkeypatch.setattr(paths, "_connect", connect)
    drawn: list[object] = []
    draw = search._frames
    monkeypatch.setattr(
        search, "_frames", lambda *given: drawn.extend(draw(*given)) or draw(*given)
    )
    config = SearchConfig(text="a", index=folder, output=tmp_path, sheet=tmp_path / "sheet.png")
    assert len(main(config)) == 4
    assert not asked
    assert sum("not fetched: give --fetch" in str(found) for found in drawn) == (
        4 if of_cache else 3
    )
    assert len(main(replace(config, fetch=True))) == 4
    assert asked


def test_the_command_chooses_the_device_of_a_search(
    videos: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _index(tmp_path, model_folder, videos=(str(videos),))
    index = SearchIndex(folder)
    rows = pq.read_table(folder / "embeddings.parquet")
    rows = rows.append_column("error", pa.nulls(len(rows), pa.string()))
    # As an earlier version wrote it.
    write_index(folder, rows, replace(index.info, model=index.info.model | {"gpu": True}))
    asked: list[bool] = []
    load = ModelChoice.load

    def noted(self: ModelChoice, gpu: bool = False) -> TrainedModel:
        asked.append(gpu)
        return load(self)

    monkeypatch.setattr(ModelChoice, "load", noted)
    monkeypatch.setattr(devices, "_gpus_here", lambda: devices.Gpus(1))
    main(SearchConfig(text="a", index=folder, output=tmp_path))
    main(SearchConfig(text="a", index=folder, output=tmp_path, device="cpu"))
    assert asked == [True, False]


def test_a_query_of_another_model_is_refused(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = _index(tmp_path, model_folder, videos=(str(videos),))
    other = ModelChoice(tower="tiny", frames=4)
    with pytest.raises(ValueError, match="was made with the model"):
        main(SearchConfig(text="a", index=folder, output=tmp_path, model=other))
    copy = tmp_path / "elsewhere"
    shutil.copytree(model_folder, copy)
    moved = ModelChoice(checkpoint=copy)
    assert main(SearchConfig(text="a", index=folder, output=tmp_path, model=moved))


def test_texts_are_found_by_a_video(
    videos: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a red square\n\na blue circle\na red square\na green cross\n")
    model = ModelChoice(checkpoint=model_folder)
    config = SearchConfig(
        video=videos / "a/v0.mp4", texts=texts, model=model, output=tmp_path, top=2
    )
    with printing_json():
        found = main(config)
    assert documented("search", capsys)["results"] == found
    assert len(found) == 2
    assert found[0]["score"] >= found[1]["score"]
    assert len({one["text"] for one in found}) == 2
    texts.write_text("\n")
    with pytest.raises(RunError, match="no sentence"):
        main(config)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "not both or none"),
        ({"text": "a", "video": Path("v")}, "not both or none"),
        ({"text": "a", "texts": Path("t")}, "--video"),
        ({"text": "a", "top": 0}, "at least 1"),
    ],
)
def test_contradicting_query_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SearchConfig(**options)


def test_an_index_has_either_videos_or_a_cache() -> None:
    for options in ({}, {"videos": ("a",), "cache": "b"}):
        with pytest.raises(ValueError, match="not both or none"):
            IndexConfig(**options)  # type: ignore[arg-type]
