"""Files are found where archives put them."""

from pathlib import Path

import pytest

from stop_core.datasets.data_root import DataRoot


def test_an_annotation_lies_in_the_root_or_one_folder_down_and_once(tmp_path: Path) -> None:
    (tmp_path / "labels/deeper").mkdir(parents=True)
    (tmp_path / "labels/deeper/a.txt").touch()
    data = DataRoot(tmp_path, "much")
    assert data.look_for("a.txt") is None
    with pytest.raises(FileNotFoundError, match=r"no a\.txt or b\.txt in .*: it should hold much"):
        data.find("a.txt", "b.txt")
    (tmp_path / "labels/b.txt").touch()
    assert data.look_for("a.txt", "b.txt") == tmp_path / "labels/b.txt"
    (tmp_path / "b.txt").touch()
    with pytest.raises(ValueError, match=r"b\.txt is there twice"):
        data.look_for("b.txt")


def test_captions_are_tidied_and_kept_in_order(tmp_path: Path) -> None:
    data, where = DataRoot(tmp_path, "much"), {"source": "s", "default": "v.mp4"}
    captions = [" A  man\n runs. ", "", "He stops.", "He stops."]
    data.add_captioned("here", "v", "train", captions, **where)
    (clip,) = data.finish()
    assert clip.captions == ("A man runs.", "He stops.", "He stops.")
    assert (clip.path, clip.source, clip.label) == ("v.mp4", "s", -1)
    with pytest.raises(ValueError, match="here: w has no caption"):
        data.add_captioned("here", "w", "train", [" ", ""], **where)
