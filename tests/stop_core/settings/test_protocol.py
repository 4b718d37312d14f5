"""A protocol is recorded in full: lists by their contents, and contradictions are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig


def test_the_hash_depends_on_the_entries_of_a_list_and_not_on_its_file(tmp_path: Path) -> None:
    shots, base = tmp_path / "train1_few_shot_2.txt", tmp_path / "base.csv"
    shots.write_text("My clip (1).avi 0\n82469.webm 12\n\nplain\n")
    base.write_text("id,name\n0,pour\n1,ride bike\n")
    read = ProtocolConfig(shots_list=(str(shots),), classes="base", base_classes=(str(base),))
    given = read.with_lists()
    assert given.shots_list == ("My clip (1).avi", "82469.webm", "plain")
    assert given.base_classes == ("pour", "ride bike")
    assert given.with_lists() == given
    config = ExperimentConfig(protocol=read).for_dataset("hmdb51")
    assert ExperimentConfig.from_parameters(config.parameters()) == config
    assert config.hash == ExperimentConfig(protocol=given).for_dataset("hmdb51").hash
    shots.write_text("other.avi 0\n")
    assert ExperimentConfig(protocol=read).for_dataset("hmdb51").hash != config.hash


def test_a_list_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    empty = tmp_path / "none.txt"
    empty.touch()
    with pytest.raises(ValueError, match=r"none\.txt is empty"):
        ProtocolConfig(shots_list=(str(empty),)).with_lists()
    with pytest.raises(OSError, match=r"the list .*gone\.txt cannot be read \(No such file"):
        ProtocolConfig(shots_list=(str(tmp_path / "gone.txt"),)).with_lists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shots": 2, "shots_list": ("a",)}, "shots and shots_list choose the same"),
        ({"base_seed": 1}, "base_seed needs classes to be base"),
        ({"base_classes": ("a",)}, "base_classes needs classes to be base"),
        (
            {"classes": "base", "base_seed": 1, "base_classes": ("a",)},
            "base_seed and base_classes choose the same",
        ),
    ],
)
def test_contradictions_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProtocolConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, float("nan"), float("inf")])
def test_a_seed_of_base_classes_is_a_number_from_0(seed: Any) -> None:
    assert ProtocolConfig(classes="base", base_seed=0).base_seed == 0
    with pytest.raises(ValueError, match="base_seed must be at least 0"):
        ProtocolConfig(classes="base", base_seed=seed)


def test_novel_classes_need_a_method_that_reads_texts() -> None:
    base = ProtocolConfig(classes="base")
    assert ExperimentConfig(method="zero-shot", protocol=base).protocol == base
    with pytest.raises(ValueError, match=r"classes is base.*linear-probe reads no text"):
        ExperimentConfig(method="linear-probe", protocol=base)


def test_a_protocol_is_named_in_words() -> None:
    assert str(ProtocolConfig()) == ""
    some = ProtocolConfig(shots=16, classes="base", full_training=True)
    assert str(some).startswith("16 clips of each class; base classes: the first half; training")
    assert "drawn with seed 3" in str(replace(some, base_seed=3))
    assert "2 listed" in str(replace(some, base_classes=("a", "b")))
    assert "a list of 1 training" in str(ProtocolConfig(shots_list=("a",)))


def test_several_texts_are_the_entries_themselves_even_if_they_look_like_files() -> None:
    config = ProtocolConfig(shots_list=("a.txt", "b.avi 3"), classes="base", base_classes=("a",))
    assert config.with_lists() == config
