"""Files are used only if they match their checksums."""

from pathlib import Path

import pytest

from stop_core.storage.atomic import SUMS, check_sums, fetched_folder, write_sums
from stop_core.storage.paths import RemotePath


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "card"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path, without=["card"])
    return tmp_path


def test_changed_file_is_refused_unless_it_has_no_sum(
    folder: Path,
) -> None:
    (folder / "card").write_text("edited")
    check_sums(folder, ["a", "b"])
    (folder / "b").write_text("other")
    with pytest.raises(ValueError, match=rf"{folder}/b is not as it was written"):
        check_sums(folder, ["a"])


def test_required_file_needs_a_sum(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"{SUMS} is damaged: it has no sum of 'card'"):
        check_sums(folder, ["a", "card"])


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x" * 5000, "a\x1b[2J", "..", "x/a"])
def test_listed_name_outside_the_folder_is_refused_in_one_line(folder: Path, name: str) -> None:
    with (folder / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match="is damaged") as refusal:
        check_sums(folder, ["a", "b"])
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


def test_any_change_of_a_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as written")
    write_sums(tmp_path)
    for number in range(8):  # sums above and below
        (tmp_path / "file").write_text(f"changed {number}")
        with pytest.raises(ValueError, match="is not as it was written"):
            check_sums(tmp_path, ["file"])


def test_a_folder_of_a_bucket_is_fetched_with_those_in_it_and_then_removed(
    bucket: RemotePath, tmp_path: Path
) -> None:
    names = {"a", "in/b", "in/c"}
    for name in names:
        (tmp_path / "file").write_text(name)
        (bucket / "model" / name).upload(tmp_path / "file")
    with fetched_folder(bucket / "model") as here:
        found = {str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()}
        assert found == names == {(here / name).read_text() for name in names}
    assert not here.exists()
    with fetched_folder(tmp_path) as here:
        assert here == tmp_path
