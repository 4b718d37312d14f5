"""HMDB51's split files: read exactly, or refused with file and line."""

from collections import Counter
from pathlib import Path

import pytest

from stop_core.datasets.hmdb51 import HMDB51_SPLITS, HMDB51_VIDEOS, read_hmdb51, source_video

REAL_SPLITS = Path(__file__).parents[4] / "shared/data/annotations/hmdb51"
needs_real_splits = pytest.mark.skipif(not REAL_SPLITS.is_dir(), reason="no real split files here")


def _root(folder: Path, **files: str) -> Path:
    (folder / HMDB51_VIDEOS).mkdir()
    (folder / HMDB51_SPLITS).mkdir()
    for name, text in files.items():
        (folder / HMDB51_SPLITS / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def real_root(tmp_path: Path) -> Path:
    (tmp_path / HMDB51_VIDEOS).mkdir()
    (tmp_path / HMDB51_SPLITS).symlink_to(REAL_SPLITS.resolve())
    return tmp_path


@needs_real_splits
@pytest.mark.parametrize("fold", [1, 2, 3])
def test_official_counts_of_every_fold(real_root: Path, fold: int) -> None:
    clips = read_hmdb51(real_root, fold)
    counts = Counter(clip.split for clip in clips)
    assert counts["train"] + counts["val"] == 3570
    assert counts["test"] == 1530
    assert len({clip.video_id for clip in clips}) == 5100
    assert len({clip.label for clip in clips}) == 51


@needs_real_splits
def test_real_carve_is_about_a_tenth_of_every_class_and_shares_no_source(real_root: Path) -> None:
    clips = read_hmdb51(real_root, 1)
    by_split = {s: [c for c in clips if c.split == s] for s in ("train", "val")}
    sources = {s: {c.source for c in members} for s, members in by_split.items()}
    assert not sources["train"] & sources["val"]
    counts = Counter(clip.label for clip in by_split["val"])
    assert len(counts) == 51
    assert all(4 <= count <= 10 for count in counts.values())


def test_codes_names_and_labels(tmp_path: Path) -> None:
    root = _root(
        tmp_path,
        wave_test_split1="a#(1)_&!_wave_f_cm_np1_fr_med_0.avi 2 \n\nb.mp4 1 \nc.avi 0 \n",
        clap_test_split1="d.avi 1 \n",
        clap_test_split2="d.avi 2 \n",
    )
    first, second, third = read_hmdb51(root, 1)
    assert (first.video_id, first.class_name, first.label) == ("clap/d", "clap", 0)
    assert (second.split, second.label) == ("test", 1)
    assert second.path == f"{HMDB51_VIDEOS}/wave/a#(1)_&!_wave_f_cm_np1_fr_med_0.avi"
    assert second.source == "a#(1)_&!"
    assert third.path == f"{HMDB51_VIDEOS}/wave/b.mp4"
    assert [clip.split for clip in read_hmdb51(root, 2)] == ["test"]


@pytest.mark.parametrize(
    "line", ["a.avi", "a.avi 3", "a.avi x", "a b.avi 1", "../a.avi 1", ".. 1", "a\\b.avi 1"]
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    root = _root(tmp_path, wave_test_split1=f"good.avi 1 \n{line}\n")
    with pytest.raises(ValueError, match=r"wave_test_split1\.txt, line 2: expected"):
        read_hmdb51(root, 1)


def test_a_name_listed_twice_is_named(tmp_path: Path) -> None:
    root = _root(tmp_path, wave_test_split1="a.avi 1 \na.avi 2 \n")
    with pytest.raises(ValueError, match=r"line 2: wave/a.avi is listed twice"):
        read_hmdb51(root, 1)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data-root"):
        read_hmdb51(tmp_path / "absent", 1)
    with pytest.raises(FileNotFoundError, match=f"no folder {HMDB51_VIDEOS}"):
        read_hmdb51(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="no split file of fold 2"):
        read_hmdb51(_root(tmp_path, wave_test_split1="a.avi 1 \n"), 2)


def test_source_is_the_name_before_the_class() -> None:
    stem = "April_09_brush_hair_u_nm_np1_ba_goo_0"
    assert source_video(stem, "brush_hair") == "April_09"
    assert source_video(stem, "wave") == stem
