"""Files of sweeps/ are found by name, and an existing path is never taken for a name."""

from pathlib import Path

import pytest

from pipelines.cli.folders import SWEEPS, named_file


@pytest.mark.parametrize(
    ("name", "folder", "found"),
    [("motion", ".", "motion.yaml"), ("ablation", "tables", "tables/ablation.yaml")],
)
def test_a_name_is_a_file_of_sweeps(name: str, folder: str, found: str) -> None:
    assert named_file(Path(name), folder) == SWEEPS / folder / Path(found).name
    assert (SWEEPS / found).is_file()


def test_other_paths_are_returned_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("no-such-space", "motion.yaml", "./sub/motion", "../motion"):
        assert named_file(Path(path)) == Path(path)
    (tmp_path / "motion").write_text("trials: 1")
    assert named_file(Path("motion")) == Path("motion")
