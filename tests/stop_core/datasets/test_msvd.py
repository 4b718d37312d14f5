"""MSVD: forty sentences a clip, from a pickle that cannot run code or from the official text."""

import pickle
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.datasets.msvd import read_msvd

MakeTree = Callable[[str], Path]


class _Bomb:
    """A pickle of it would make a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


def test_both_forms_of_the_captions_give_the_same(make_tree: MakeTree) -> None:
    root = make_tree("msvd")
    clips = read_msvd(root)
    assert {clip.captions for clip in clips} == {("a man runs", "he runs")}
    assert clips[0].source == "-_hbPLsZ00o"
    (root / "raw-captions.pkl").unlink()
    lines = [f"{clip.video_id} {text}\n" for clip in clips for text in clip.captions]
    (root / "AllVideoDescriptions.txt").write_text("# comment\n\n" + "".join(lines))
    assert read_msvd(root) == clips


def test_a_pickle_that_holds_more_than_words_is_not_run(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree("msvd")
    (root / "raw-captions.pkl").write_bytes(pickle.dumps({"a": _Bomb(tmp_path / "made")}))
    with pytest.raises(ValueError, match=r"raw-captions\.pkl: not a pickled dictionary"):
        read_msvd(root)
    assert not (tmp_path / "made").exists()


def test_real_lists(real_annotations: Callable[[str], Path], tmp_path: Path) -> None:
    captions = defaultdict(list)
    for path in real_annotations("msvd").iterdir():
        (tmp_path / path.name).symlink_to(path)
        for name in path.read_text().split():
            captions[name].append(["a", "man", "runs"])
    # Protocol 2, as Python 2 wrote it.
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    clips = read_msvd(tmp_path)
    assert Counter(clip.split for clip in clips) == {"train": 1200, "val": 100, "test": 670}
    assert all(len(clip.source) == 11 for clip in clips)
    path = tmp_path / "test_list.txt"
    path.unlink()
    path.write_text(f"{clips[0].video_id}\n")
    with pytest.raises(ValueError, match=r"test_list\.txt, line 1: .* first in .*train_list"):
        read_msvd(tmp_path)


def test_a_clip_without_captions_is_named(make_tree: MakeTree) -> None:
    root = make_tree("msvd")
    (root / "val_list.txt").write_text("unknown_1_2\n")
    with pytest.raises(ValueError, match=r"val_list\.txt, line 1: unknown_1_2 has no caption"):
        read_msvd(root)
