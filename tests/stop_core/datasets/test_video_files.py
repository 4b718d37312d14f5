"""Files are found by name, whatever their extension and folder, or refused where unclear."""

from pathlib import Path

import pytest

from stop_core.datasets import Clip, missing_clips
from stop_core.datasets.video_files import VideoFiles


def _touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_a_listed_path_wins_over_the_one_beside_it(tmp_path: Path) -> None:
    _touch(tmp_path, "v/a.avi", "v/a.mp4", "v/b.MP4", "w/c.mkv")
    files = VideoFiles(tmp_path, "v")
    assert files.at("v/a.avi") == "v/a.avi"
    assert files.at("v/b.avi") == "v/b.MP4"
    assert files.at("v/c.avi") == "v/c.avi"  # not below v: listed, and missing
    with pytest.raises(ValueError, match=r"v/a\.webm is there twice below .*v/a\.avi and v/a\.mp4"):
        files.at("v/a.webm")


def test_a_name_is_found_in_any_folder_dots_and_all(tmp_path: Path) -> None:
    _touch(tmp_path, "x/y/1.00-2.00.avi", "x/z.mov.mp4", "x/n.txt", "x/.hidden/h.mp4", "x/.i.mp4")
    files = VideoFiles(tmp_path)
    assert files.paths == ["x/y/1.00-2.00.avi", "x/z.mov.mp4"]
    assert files.named("1.00-2.00") == "x/y/1.00-2.00.avi"
    assert files.named("z.mov", "z") == "x/z.mov.mp4"
    assert files.named("n", "h") is None
    _touch(tmp_path, "copy/z.mov.mp4")
    with pytest.raises(ValueError, match=r"z\.mov is there twice"):
        VideoFiles(tmp_path).named("z.mov")


def test_links_are_followed_and_a_ring_of_them_ends(tmp_path: Path) -> None:
    _touch(tmp_path, "disk/a.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/videos").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/up").symlink_to(tmp_path / "root")
    (tmp_path / "disk/gone.mp4").symlink_to(tmp_path / "nowhere")
    assert VideoFiles(tmp_path / "root").paths == ["videos/a.mp4"]


def test_what_is_missing_is_told_in_order(tmp_path: Path) -> None:
    _touch(tmp_path, "v/a.mp4", "b.mp4")
    (tmp_path / "v/d.mp4").mkdir()
    paths = ("v/c.mp4", "v/a.mp4", "b.mp4", "w/a.mp4", "v/d.mp4", "b.mp4/e.mp4")
    clips = [Clip(path, path, "train", 0, "a", path) for path in paths]
    missing = [clip.path for clip in missing_clips(tmp_path, clips)]
    assert missing == ["v/c.mp4", "w/a.mp4", "v/d.mp4", "b.mp4/e.mp4"]
