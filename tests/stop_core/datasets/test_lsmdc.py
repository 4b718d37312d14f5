"""LSMDC: tab-separated lines, and clips named by movie and time."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.lsmdc import movie_of, read_lsmdc

MakeTree = Callable[[str], Path]
TEST = "LSMDC16_challenge_1000_publictect.csv"


def test_sentences_of_a_clip_are_kept_in_order_with_their_quotes(make_tree: MakeTree) -> None:
    clips = read_lsmdc(make_tree("lsmdc"))
    assert Counter(clip.split for clip in clips) == {"train": 3, "val": 3, "test": 3}
    assert clips[0].video_id == "0001_American_Beauty_00.23.20.000-00.23.20.886"
    assert clips[0].captions == ("SOMEONE waits, 0.", 'She "waits".')
    assert clips[0].source == "0001_American_Beauty"
    assert clips[0].path == f"0001_American_Beauty/{clips[0].video_id}.avi"


def test_the_real_test_list(real_annotations: Callable[[str], Path], make_tree: MakeTree) -> None:
    root = make_tree("lsmdc")
    (root / TEST).unlink()
    (root / TEST).symlink_to(real_annotations("lsmdc") / TEST)
    clips = [clip for clip in read_lsmdc(root) if clip.split == "test"]
    assert len(clips) == 1000
    assert all(len(clip.captions) == 1 for clip in clips)
    assert len({clip.source for clip in clips}) == 17
    assert clips[0].captions == ("SOMEONE stands below, hands on her hips.",)


def test_a_broken_line_and_a_clip_in_two_splits_are_named(make_tree: MakeTree) -> None:
    root = make_tree("lsmdc")
    (root / TEST).write_text((root / "LSMDC16_annos_val.csv").read_text())
    with pytest.raises(
        ValueError, match=r"publictect\.csv, line 1: 1004_Juno.* is listed twice, .*annos_val"
    ):
        read_lsmdc(root)
    (root / TEST).write_text("a_clip\t00.00\tSOMEONE runs.\n")
    with pytest.raises(ValueError, match=r"publictect\.csv, line 1: expected 6 fields .* found 3"):
        read_lsmdc(root)


def test_a_movie_is_the_name_before_the_times() -> None:
    assert movie_of("3064_SPARKLE_2012_01.10.49.683-01.10.52.477") == "3064_SPARKLE_2012"
    assert movie_of("no_times") == "no_times"
