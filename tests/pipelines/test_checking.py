"""`--check`: what is missing is counted, named and listed, and nothing else is written."""

import sys
from pathlib import Path

import pytest

from pipelines.command_line import RunError, parse
from pipelines.preprocess import PreprocessConfig, check, main


def _config(root: Path, tmp_path: Path) -> PreprocessConfig:
    return PreprocessConfig(
        dataset="hmdb51", data_root=root, cache=tmp_path / "cache", output=tmp_path / "out"
    )


def test_all_there_is_one_line_and_exit_code_0(
    hmdb51_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = f"--dataset hmdb51 --data-root {hmdb51_root} --check --output {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", ["preprocess.py", *options.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    told = f"complete  10 of 10 train, 2 of 2 val, 4 of 4 test clips are below {hmdb51_root}"
    assert capsys.readouterr().out.strip() == told
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_listed_and_no_cache_is_written(
    hmdb51_root: Path, tmp_path: Path
) -> None:
    videos = sorted(hmdb51_root.glob("hmdb51_org/wave/*.avi"))
    for path in videos:
        path.unlink()
    with pytest.raises(RunError) as caught:
        check(_config(hmdb51_root, tmp_path))
    told = str(caught.value)
    report = tmp_path / "out/check/hmdb51-missing.txt"
    assert told.startswith("8 listed clips are missing: 5 of 10 train, 1 of 2 val, 2 of 4 test")
    assert "hmdb51_org/wave/film0" in told
    assert told.endswith(f"and more; all of them are listed in {report}")
    lines = [line.split("\t") for line in report.read_text().splitlines()]
    assert [path for _, path in lines] == [str(path.relative_to(hmdb51_root)) for path in videos]
    assert {split for split, _ in lines} == {"train", "val", "test"}
    assert not (tmp_path / "cache").exists()


def test_only_what_was_chosen_is_checked(hmdb51_root: Path, tmp_path: Path) -> None:
    next(hmdb51_root.glob("hmdb51_org/wave/*.avi")).unlink()
    options = ["--dataset", "hmdb51", "--data-root", str(hmdb51_root), "--check"]
    config = parse(PreprocessConfig, [*options, "--classes", "ride_bike"])
    assert check(config).startswith("complete  5 of 5 train, 1 of 1 val, 2 of 2 test clips are")


@pytest.mark.parametrize("dataset", ["motion", "motion-captions"])
def test_a_generated_set_that_is_not_there_is_generated_without_the_option(
    dataset: str, tmp_path: Path
) -> None:
    config = PreprocessConfig(dataset=dataset, check=True, output=tmp_path / "out")
    with pytest.raises(RunError, match=r"out/data/\S+ to check: .* same command without --check"):
        check(config)
    assert not (tmp_path / "out").exists()


def test_a_broken_annotation_is_told(hmdb51_root: Path, tmp_path: Path) -> None:
    path = hmdb51_root / "testTrainMulti_7030_splits/wave_test_split1.txt"
    path.write_text("film.avi 7\n")
    with pytest.raises(ValueError, match=r"wave_test_split1\.txt, line 1"):
        check(_config(hmdb51_root, tmp_path))
