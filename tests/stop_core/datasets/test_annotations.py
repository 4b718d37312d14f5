"""Names from annotations stay in their folder, and errors name file and line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.datasets.annotations import (
    read_annotations,
    read_csv_rows,
    read_lines,
    safe_name,
    safe_path,
)

parts = st.sampled_from(["a", "..", ".", "", "b.mp4", "/", "\\", "\0", " ", "...", "c d"])


@given(st.lists(parts, min_size=1, max_size=5).map("".join))
def test_a_safe_name_is_a_file_in_the_folder(name: str) -> None:
    root = Path("/root")
    try:
        safe_name(name, "here")
    except ValueError:
        assert name in ("", ".", "..") or set(name) & set("/\\\0")
    else:
        assert (root / name).parent == root
        assert (root / name).name == name


@given(st.lists(parts, min_size=1, max_size=6).map("/".join))
def test_a_safe_path_stays_below_the_root(path: str) -> None:
    root = Path("/root")
    try:
        safe_path(path, "here")
    except ValueError:
        pass
    else:
        assert ".." not in (root / path).parts
        assert (root / path).is_relative_to(root)
        assert str(root / path) == f"{root}/{path}"


def test_lines_break_where_the_file_says_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\ufeffone\r\n\r\n two\x85still\u2028two\n", encoding="utf-8", newline="")
    assert list(read_lines(path)) == [
        (f"{path}, line 1", "one"),
        (f"{path}, line 3", " two\x85still\u2028two"),
    ]


def test_rows_keep_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('a,b\n1,"x\ny"\n\n2,z\n')
    assert list(read_csv_rows(path, "b")) == [
        (f"{path}, line 3", {"a": "1", "b": "x\ny"}),
        (f"{path}, line 5", {"a": "2", "b": "z"}),
    ]


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"a": 1},\n{"a": }\n]')
    with pytest.raises(ValueError, match=r"a\.json, line 3: not JSON"):
        read_annotations(path, list)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json: expected a list"):
        read_annotations(path, list)


def test_what_is_there_twice_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"v_a": {"sentences": ["one"]}, "v_a": {"sentences": []}}')
    with pytest.raises(ValueError, match=r"a\.json: 'v_a' is there twice in one object"):
        read_annotations(tmp_path / "a.json", dict)
    (tmp_path / "a.csv").write_text("path,label,label\na.mp4,walk,run\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 1: the column label appears twice"):
        list(read_csv_rows(tmp_path / "a.csv", "path", "label"))
