"""Every recipe is complete and marked, and its chain runs on each dataset's true layout."""

import math
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.cli.console import RunError
from pipelines.cli.options import parse
from pipelines.preprocessing.make_cache import PreprocessConfig
from pipelines.reproduce import RECIPES, Plan, ReproduceConfig, main, recipe_file
from pipelines.train import TrainConfig
from stop_core.clip.loading import check_name, tower_shape
from tests.stop_core.datasets.conftest import make_tree_at

WriteVideo = Callable[..., Path]
DATASETS = {
    "hmdb51": "hmdb51",
    "ucf101": "ucf101",
    "ssv2": "ssv2-val",
    "msrvtt": "msrvtt",
    "activitynet": "activitynet",
    "didemo": "didemo",
    "vatex": "vatex-1k5",
}
NAMES = [f"{name}_vit_{tower}" for name in DATASETS for tower in ("b32", "b16")]
TINY = ["--tower", "tiny", "--pretrained", "None", "--device", "cpu", "--seeds", "1"]


def _run(*words: str) -> None:
    main(parse(ReproduceConfig, words))


@cache
def _plan(*words: str) -> Plan:
    return Plan(parse(ReproduceConfig, [*words, "--dry-run"]))


def test_the_recipes_are_those_of_the_datasets_and_towers() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*NAMES, "motion"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_read_by_preprocess_train_and_reproduce(name: str) -> None:
    trained = parse(TrainConfig, ["--config", name])
    made = parse(PreprocessConfig, ["--config", name, "--data-root", "d"])
    assert parse(ReproduceConfig, [name]).experiment == trained.experiment
    assert made.dataset == DATASETS[name.partition("_")[0]]
    config = trained.experiment
    check_name(config.tower, config.pretrained)
    shape = tower_shape(config.tower)
    assert shape is not None
    assert shape.image_size == made.shape[1]
    assert shape.patches == {"b32": 49, "b16": 196}[name[-3:]]
    assert config.tower.endswith("-quickgelu"), "the activation of OpenAI's weights"
    assert (config.frames or made.shape[0]) <= made.shape[0]
    assert config.segment_jitter == (config.frames is not None)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_recipe_has_a_mark_of_its_source(name: str) -> None:
    lines = recipe_file(name).read_text().splitlines()
    settings = [line for line in lines if line[0] != "#" and line != "preprocess:"]
    assert len(settings) > 12
    for line in settings:
        assert re.search(r"  # (paper|code|field|ours)\b", line), line


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_a_gpu_of_40_gigabytes(name: str) -> None:
    costs = "\n".join(_plan(name).costs())
    (memory,) = re.findall(r"memory   about ([\d.]+) GiB", costs)
    assert 5 < float(memory) < 36


def _counts(name: str, *words: str) -> tuple[list[int], int]:
    """Returns the clips of the splits and the steps of a training, as printed."""
    costs = "\n".join(_plan(name, *words).costs())
    clips = re.findall(r"([\d,]+) (?:train|val|test)\b", costs.split("steps")[0])
    (steps,) = re.findall(r"steps    ([\d,]+) per", costs)
    return [int(text.replace(",", "")) for text in clips], int(steps.replace(",", ""))


@pytest.mark.parametrize("tower", ["b32", "b16"])
def test_the_steps_are_those_of_the_published_protocols(tower: str) -> None:
    assert _counts(f"msrvtt_vit_{tower}") == ([8100, 900, 1000], 180_000 * 5 // 128)
    assert _counts(f"vatex_vit_{tower}") == ([25_991, 1500, 1500], 259_910 // 64 * 10)
    clips, steps = _counts(f"hmdb51_vit_{tower}")
    assert (clips, steps) == ([3213, 357, 1530], 51 * 20)
    assert _counts(f"activitynet_vit_{tower}")[1] == 10 * math.ceil(10_009 / 128)


@pytest.mark.parametrize("name", NAMES)
def test_the_costs_in_the_docs_are_those_of_the_dry_run(name: str) -> None:
    costs = "\n".join(_plan(name).costs())
    numbers = re.findall(
        r"steps    ([\d,]+)|about ([\d.]+) GiB|most ([\d.]+) GB|, ([\d.]+) h for (\d+)", costs
    )
    steps, memory, disk, a100, h100 = ([text for text in one if text] for one in numbers)
    cells = [*steps, a100[1], *memory, *disk, a100[0], h100[0]]
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    assert f"| `{name}` | {' | '.join(cells)} |" in page


def test_a_dry_run_needs_no_data_and_prints_settings_commands_and_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("msrvtt", "--dry-run", "--seeds", "5", "--dropout", "0.1", "--output", str(tmp_path / "o"))
    said = capsys.readouterr().out
    assert said.startswith(recipe_file("msrvtt_vit_b32").read_text())
    assert "\ndropout: 0.1  # overridden here, was 0.5\n" in said
    assert said.count("overridden") == 1
    commands = [line for line in said.splitlines() if line.startswith("$ ")]
    assert [re.findall(r"^\$ stop (\w+) ", line) for line in commands] == [
        ["preprocess"], ["preprocess"], ["benchmark"]
    ]  # fmt: skip
    assert "--config msrvtt_vit_b32 " in commands[0]
    assert commands[0].endswith("--check")
    assert re.search(r"--seeds 5 .*--published \S+/msrvtt_vit_b32\.csv", commands[2])
    assert re.search(r"h on one H100, [\d.]+ h for 5 trainings", said)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", DATASETS)
def test_a_dry_run_checks_the_true_layout_and_counts_its_clips(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    make_tree_at(root, DATASETS[name])
    words = (name, "--dry-run", "--folds", "1", "--data-root", str(root))
    _run(*words, "--output", str(tmp_path / "o"))
    said = capsys.readouterr()
    assert "complete: all" in said.out
    listed = re.findall(r"^(?:train|val|test) +(\d+) +0 ", said.out, re.M)
    assert _counts(*words)[0] == [int(text) for text in listed]
    # Without a video, the dry run reports it and continues.
    next(path for path in root.rglob("*") if path.suffix in (".avi", ".mp4", ".webm")).unlink()
    _run(*words, "--output", str(tmp_path / "o"))
    said = capsys.readouterr()
    assert "listed clips are missing" in said.err
    assert "GiB of a GPU" in said.out


def test_missing_videos_stop_the_chain_before_anything_is_decoded(
    hmdb51_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(hmdb51_root.glob("hmdb51_org/*/*.avi")).unlink()
    words = ("hmdb51", *TINY, "--folds", "1", "--data-root", str(hmdb51_root))
    with pytest.raises(RunError, match=r"1 of 16 listed clips are missing.*add --allow-missing"):
        _run(*words, "--output", str(tmp_path / "o"))
    assert not (tmp_path / "o" / "cache").exists()


def _fill(root: Path, write_video: WriteVideo) -> None:
    """Replaces the empty videos of a tree by small ones."""
    for number, path in enumerate(sorted(root.rglob("*"))):
        if path.suffix in (".avi", ".mp4", ".webm"):
            path.unlink()
            write_video(path, seed=number)


@pytest.mark.slow
@pytest.mark.usefixtures("trained_here")
@pytest.mark.parametrize(
    ("name", "more", "first", "cells"),
    [
        ("hmdb51", ("--folds", "1", "2", "--epochs", "1"), "test_top1_mean", 4),
        ("msrvtt", ("--steps", "2"), "test_t2v_r1_mean", 2),
    ],
)
def test_the_chain_runs_from_the_true_layout_to_the_table_and_resumes(
    name: str,
    more: Sequence[str],
    first: str,
    cells: int,
    tmp_path: Path,
    write_video: WriteVideo,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, output = tmp_path / "data", tmp_path / "o"
    make_tree_at(root, DATASETS[name])
    _fill(root, write_video)
    for path in root.glob("*splits/*split1.txt"):
        shutil.copyfile(path, str(path).replace("split1", "split2"))
    words = (name, *TINY, *more, "--data-root", str(root), "--output", str(output))
    _run(*words, "--batch-size", "4")
    said = capsys.readouterr()
    assert f"{cells} trainings in the table, {cells} of them to run" in said.err
    rows = yaml.safe_load((output / f"reproduce/{name}_vit_b32.yaml").read_text())["rows"]
    assert list(rows) == ["zero-shot CLIP", "STOP"]
    assert rows["STOP"]["batch_size"] == 4
    (file,) = output.glob("tables/*/table.csv")
    frame = pd.read_csv(file)
    assert frame["method"][:2].tolist() == ["zero-shot CLIP", "STOP"]
    assert frame[first][:2].notna().all()
    assert (frame["kind"] == "published").any() == (name == "msrvtt")
    if name == "msrvtt":
        assert "is DGL with adapters" in said.out

    _run(*words, "--batch-size", "4")
    said = capsys.readouterr()
    assert "decoding" not in said.err
    assert f"{cells} trainings in the table, 0 of them to run" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the recipe comes first"),
        (["--dry-run", "hmdb51"], "the recipe comes first"),
        (["hmbd51"], "no recipe 'hmbd51'; did you mean hmdb51?"),
        (["hmdb51", "--tower", "ViT-B-99"], "ViT-B-99"),
        (["hmdb51", "--folds", "4", "--dry-run"], "--fold must be from 1 to 3"),
        (["hmdb51"], "hmdb51 needs --data-root"),
        (["hmdb51", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["hmdb51", "--seed", "3"], "seed is 3; give the number of them, --seeds"),
        (["hmdb51", "--data-root", "d", "--pretrained", "none.pt"], "neither a file nor weights"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_read(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as caught:
        _run(*words)
    assert message in f"{caught.value} {capsys.readouterr().err}"


def test_weights_are_fetched_before_the_videos_are_decoded(
    monkeypatch: pytest.MonkeyPatch, hmdb51_root: Path
) -> None:
    def fetch(tower: str, tag: str) -> Path:
        raise OSError(f"{tower} {tag} could not be loaded")

    monkeypatch.setattr("stop_core.clip.pretrained.fetch", fetch)
    with pytest.raises(OSError, match="ViT-B-32-quickgelu openai could not be loaded"):
        _run("hmdb51", "--folds", "1", "--data-root", str(hmdb51_root))
