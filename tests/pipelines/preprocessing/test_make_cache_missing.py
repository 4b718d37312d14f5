"""`--check` counts, names and lists missing clips, and writes nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cli.console import RunError
from pipelines.cli.options import parse
from pipelines.preprocess import main
from pipelines.preprocessing.make_cache import PreprocessConfig, check, make_cache


def _config(root: Path, tmp_path: Path) -> PreprocessConfig:
    return PreprocessConfig(
        dataset="hmdb51", data_root=root, cache=tmp_path / "cache", output=tmp_path / "out"
    )


def test_a_complete_dataset_is_a_table_and_no_error(
    hmdb51_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = f"--dataset hmdb51 --data-root {hmdb51_root} --check --output {tmp_path / 'out'}"
    main(parse(PreprocessConfig, options.split()))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["split", "clips", "missing", "classes"],
        ["train", "10", "0", "2"],
        ["val", "2", "0", "2"],
        ["test", "4", "0", "2"],
    ]
    assert lines[4].startswith("note  the lists are not those that hmdb51 is published with")
    assert all(len(line) <= 80 for line in lines[:-1])
    assert lines[-1] == f"complete: all 16 clips are below {hmdb51_root}"
    assert not (tmp_path / "out").exists()


def test_missing_clips_are_listed_and_no_cache_is_written(
    hmdb51_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted(hmdb51_root.glob("hmdb51_org/wave/*.avi"))
    for path in videos:
        path.unlink()
    with pytest.raises(RunError) as caught:
        check(_config(hmdb51_root, tmp_path))
    told = str(caught.value)
    report = tmp_path / "out/check/hmdb51-missing.txt"
    assert told.startswith(f"8 of 16 listed clips are missing below {hmdb51_root}: ")
    counts = [line.split() for line in capsys.readouterr().out.splitlines()[1:4]]
    assert counts == [["train", "10", "5", "2"], ["val", "2", "1", "2"], ["test", "4", "2", "2"]]
    assert "hmdb51_org/wave/film0" in told
    assert told.endswith(f"and more; all of them are listed in {report}")
    lines = [line.split("\t") for line in report.read_text().splitlines()]
    assert [path for _, path in lines] == [str(path.relative_to(hmdb51_root)) for path in videos]
    assert {split for split, _ in lines} == {"train", "val", "test"}
    assert not (tmp_path / "cache").exists()


def test_only_chosen_clips_are_checked(hmdb51_root: Path, tmp_path: Path) -> None:
    next(hmdb51_root.glob("hmdb51_org/wave/*.avi")).unlink()
    options = ["--dataset", "hmdb51", "--data-root", str(hmdb51_root), "--check"]
    config = parse(PreprocessConfig, [*options, "--classes", "ride_bike"])
    assert check(config) == f"complete: all 8 clips are below {hmdb51_root}"


@pytest.mark.parametrize("dataset", ["motion", "motion-captions"])
def test_a_generated_set_that_is_not_there_is_generated_without_the_option(
    dataset: str, tmp_path: Path
) -> None:
    config = PreprocessConfig(dataset=dataset, check=True, output=tmp_path / "out")
    with pytest.raises(RunError, match=r"out/data/\S+ to check: .* same command without --check"):
        check(config)
    assert not (tmp_path / "out").exists()


def test_a_broken_annotation_is_refused(hmdb51_root: Path, tmp_path: Path) -> None:
    path = hmdb51_root / "testTrainMulti_7030_splits/wave_test_split1.txt"
    path.write_text("film.avi 7\n")
    with pytest.raises(ValueError, match=r"wave_test_split1\.txt, line 1"):
        check(_config(hmdb51_root, tmp_path))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a folder of empty videos, two of each class in each split."""

    def make(train: tuple[str, ...], test: tuple[str, ...]) -> Path:
        for split, names in (("train", train), ("test", test)):
            for name in names:
                for number in range(2):
                    path = tmp_path / "data" / split / name / f"{split}{number}.mp4"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
        return tmp_path / "data"

    return make


@pytest.mark.parametrize("checks", [True, False])
def test_two_classes_of_one_sentence_are_refused_before_anything_is_decoded(
    make_folder: Callable[..., Path], tmp_path: Path, checks: bool
) -> None:
    root = make_folder(("brush_hair", "brush hair"), ("brush_hair", "wave"))
    config = PreprocessConfig(
        dataset="folder",
        data_root=str(root),
        cache=str(tmp_path / "cache"),
        output=tmp_path / "out",
    )
    with pytest.raises(ValueError, match="the classes 'brush hair' and 'brush_hair' become"):
        check(config) if checks else make_cache(config)
    assert not (tmp_path / "cache").exists()
    apart = replace(config, classes=("brush_hair ", "wave"))  # chosen apart, they are fine
    assert check(apart).startswith("complete: all 6 clips")


def test_a_class_in_only_one_split_is_a_note_and_no_failure(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(("walk", "Walk"), ("walk ", "swim"))
    options = ["--dataset", "folder", "--data-root", str(root), "--check"]
    told = check(parse(PreprocessConfig, [*options, "--output", str(tmp_path / "out")]))
    assert told.startswith("complete: all 8 clips")
    said = " ".join(capsys.readouterr().out.split())
    assert "note 1 of 2 classes have clips in test and none in train: swim" in said
    assert "note 1 of 2 classes have clips in train and none in test: Walk" in said
    assert "note the classes 'Walk' and 'walk' differ only by case" in said


def test_captions_of_a_retrieval_set_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("a.mov,train,one", "a.mp4,train,two", "b.mp4,test,three", "b.mp4,test,four")
    (tmp_path / "clips.csv").write_text("\n".join(["path,split,caption", *rows]))
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    options = ["--dataset", "csv-captions", "--data-root", str(tmp_path), "--check"]
    check(parse(PreprocessConfig, [*options, "--output", str(tmp_path / "out")]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["split", "clips", "missing", "captions"],
        ["train", "1", "0", "2"],
        ["val", "0", "0", "0"],
        ["test", "1", "0", "2"],
    ]
    assert lines[4:] == ["note  the split val has no clips"]
