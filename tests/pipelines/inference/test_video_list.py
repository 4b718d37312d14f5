"""Videos with the same name in different folders are shown with their folders."""

from pathlib import Path

import pytest

from pipelines.explain import ExplainConfig
from pipelines.inference.video_list import list_videos, short_names


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    for folder in ("run/a", "run/b", "sit/a", "sit"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "clip.mp4").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([""], ["run/a/clip.mp4", "run/b/clip.mp4", "sit/a/clip.mp4", "sit/clip.mp4"]),
        (["run"], ["a/clip.mp4", "b/clip.mp4"]),
        (["run/a"], ["clip.mp4"]),
        (["run/a/clip.mp4"], ["clip.mp4"]),
        (["run", "sit"], ["run/a/clip.mp4", "run/b/clip.mp4", "sit/a/clip.mp4", "sit/clip.mp4"]),
        (["run/a/clip.mp4", "run/b/clip.mp4"], ["a/clip.mp4", "b/clip.mp4"]),
        (["sit", "run/a/clip.mp4"], ["sit/a/clip.mp4", "sit/clip.mp4", "run/a/clip.mp4"]),
    ],
)
def test_short_names_are_paths_in_the_given_folder_and_unique(
    alike: Path, given: list[str], shown: list[str]
) -> None:
    folders = [str(alike / one) for one in given]
    names = [video.name for video in list_videos(folders)]
    assert short_names(names, folders) == shown


def test_short_names_of_uris_are_paths_in_the_given_folder() -> None:
    names = ["s3://bucket/run/a/clip.mp4", "s3://bucket/run/b/clip.mp4"]
    assert short_names(names, ["s3://bucket/run"]) == ["a/clip.mp4", "b/clip.mp4"]
    assert short_names(names) == ["a/clip.mp4", "b/clip.mp4"]


def test_long_names_are_not_truncated() -> None:
    names = [f"/videos/{'x' * 60}{middle}{'y' * 60}.mp4" for middle in "ab"]
    assert short_names(names, ["/videos"]) == [Path(name).name for name in names]


def test_explanations_of_different_videos_have_different_paths(
    alike: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(alike / "run")
    videos = ["a/clip.mp4", "b/clip.mp4", "../sit/a/clip.mp4", "../sit/clip.mp4", "a/clip.avi"]
    films = [ExplainConfig(Path(video), output=Path("out")).film for video in videos]
    assert len({film.with_suffix(".png") for film in films}) == len(films)
    assert films[0] == Path("out/explained/a/clip.mp4")
    assert films[-1] == Path("out/explained/a/clip.avi.mp4")
    assert ExplainConfig((alike / "run/a/clip.mp4"), output=Path("out")).film == films[0]
