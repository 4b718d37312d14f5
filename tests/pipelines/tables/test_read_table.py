"""A table in YAML gives the experiments that it describes; a mistake is reported with its place."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.experiment_fields import build_experiment
from pipelines.cli.folders import SWEEPS
from pipelines.tables.read_table import read_table
from stop_core.clip.loading import load_clip
from stop_core.model.methods import build_method
from stop_core.settings.experiment import METHODS, ExperimentConfig


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    return path


def test_the_shipped_comparison_has_stop_and_its_baselines() -> None:
    rows = read_table(SWEEPS / "tables" / "motion.yaml").rows
    methods = {build_experiment(values, title).method for title, values in rows.items()}
    assert methods == {"stop", "zero-shot", "linear-probe", "vpt-deep", "st-adapter"}


def _ablation() -> dict[str, dict[str, Any]]:
    stop = read_table(SWEEPS / "tables" / "motion.yaml").rows["STOP"]
    return read_table(SWEEPS / "tables" / "ablation.yaml", base=stop).rows


def test_the_rows_of_the_shipped_ablation_differ_from_stop_only_in_the_model() -> None:
    rows = _ablation()
    stop = read_table(SWEEPS / "tables" / "motion.yaml").rows["STOP"]
    experiments = {title: build_experiment(values, title) for title, values in rows.items()}
    assert experiments["STOP"] == build_experiment(stop, "STOP")
    assert len({one.hash for one in experiments.values()}) == len(rows)
    same = ("tower", "pretrained", "epochs", "batch_size", "learning_rate", "spatial_rate")
    same += ("weight_decay", "warmup_steps", "clip_norm", "seed")
    for title, one in experiments.items():
        for name in same:
            assert getattr(one, name) == getattr(experiments["STOP"], name), (title, name)


def test_the_shipped_table_for_real_datasets_has_every_method() -> None:
    rows = read_table(SWEEPS / "tables" / "recognition.yaml").rows
    experiments = [build_experiment(values, title) for title, values in rows.items()]
    assert {one.method for one in experiments} == set(METHODS)
    assert len({one.hash for one in experiments}) == len(rows)


def test_the_shipped_table_for_retrieval_has_no_method_that_learns_classes() -> None:
    rows = read_table(SWEEPS / "tables" / "retrieval.yaml").rows
    methods = [build_experiment(values, title).method for title, values in rows.items()]
    assert methods == ["zero-shot", "clip4clip", "vpt-deep", "stop"]


def test_every_row_of_a_shipped_table_fits_its_tower() -> None:
    # Random weights are enough, and need no download.
    load = cache(load_clip)
    for path in sorted((SWEEPS / "tables").glob("*.yaml")):
        for title, values in read_table(path).rows.items():
            one = build_experiment(values, title).for_dataset("hmdb51")
            build_method(one, load(one.tower, "random"), classes=2)


def test_templates_are_one_text_or_a_list_of_texts() -> None:
    assert build_experiment({"templates": "ensemble"}, "here").templates == ("ensemble",)
    given = ["a {}", "the {}"]
    assert build_experiment({"templates": given}, "here").templates == tuple(given)
    with pytest.raises(ValueError, match=r"here: templates must be a text or a list.*\[1\]"):
        build_experiment({"templates": [1]}, "here")


def test_the_ablation_resolves_all_patches_and_matched_parameters() -> None:
    rows = _ablation()
    tower = build_method(ExperimentConfig(), load_clip("tiny"), classes=2).tower
    assert rows["every patch prompted"]["n_s"] == tower.patches
    stop, static = (
        _trainable(build_experiment(rows[title], title))
        for title in ("STOP", "static prompts (VPT), as many parameters")
    )
    assert abs(static - stop) <= tower.depth * tower.width / 2, "half of a prompt in every block"


def _trainable(config: ExperimentConfig) -> int:
    model = build_method(config, load_clip(config.tower), classes=2)
    return sum(p.numel() for p in model.trainable().values())


def test_the_baseline_is_a_row_by_default_the_first(tmp_path: Path) -> None:
    rows = "rows: {a: , b: {n_s: 4}}\n"
    assert read_table(_file(tmp_path, rows)).baseline == "a"
    assert read_table(_file(tmp_path, rows + "baseline: b\n")).baseline == "b"
    for value, shown in (("c", "'c'"), ("[a]", r"\['a'\]")):
        with pytest.raises(
            ValueError, match=rf"line 2: baseline is {shown}, but the rows are a, b"
        ):
            read_table(_file(tmp_path, rows + f"baseline: {value}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {a: }\ncolumns: []\n", "line 2: 'columns' is not one of common, rows, baseline"),
        ("common: {epochs: 3}\nrows: [a]\n", r"line 2: rows must be .* lines, got \['a'\]"),
        ("rows:\n  a: 4\n", "line 2: a must be .* lines, got 4"),
        ("common: {epochs: 3}\n", "rows is empty"),
        ("- a\n", "line 1: the file must be"),
    ],
)
def test_a_wrong_structure_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(_file(tmp_path, text))


def test_settings_of_stop_and_of_training_are_assigned_by_name() -> None:
    experiment = build_experiment({"n_s": 3, "alpha": 0.25, "epochs": 7}, "here")
    assert (experiment.stop.n_s, experiment.stop.alpha, experiment.epochs) == (3, 0.25, 7)


def test_a_number_is_the_same_in_every_notation() -> None:
    written = ({"eta": 4, "learning_rate": "1e-3"}, {"eta": 4.0, "learning_rate": 0.001})
    first, second = (build_experiment(values, "here") for values in written)
    assert first == second
    assert first.hash == second.hash


def test_common_settings_hold_for_a_row_unless_it_overrides_them(tmp_path: Path) -> None:
    path = _file(tmp_path, "common: {epochs: 3, n_s: 2}\nrows: {a: , b: {n_s: 4}}\n")
    rows = read_table(path).rows
    assert rows == {"a": {"epochs": 3, "n_s": 2}, "b": {"epochs": 3, "n_s": 4}}


def test_a_wrong_row_is_refused_with_its_title(tmp_path: Path) -> None:
    path = _file(tmp_path, "rows: {my row: {method: magic}}")
    with pytest.raises(ValueError, match=r"my row.*method must be one of"):
        read_table(path)
