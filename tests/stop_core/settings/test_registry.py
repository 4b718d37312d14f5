"""Laws of a registry: installed packages add entries, and a broken one takes nothing down."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from stop_core.datasets import DATASETS, Dataset
from stop_core.settings.experiment import ExperimentConfig, setting_types
from stop_core.settings.methods import METHODS, Method
from stop_core.settings.registry import Registry
from tests.own_package import install, see


@dataclass(frozen=True)
class Entry:
    name: str
    value: int = 0


def test_two_entries_of_one_name_are_refused() -> None:
    registry = Registry(Entry, "stop_video.test")
    registry.register(Entry("own"))
    assert registry.register(Entry("own")) is not None
    with pytest.raises(ValueError, match=r"'own' is registered twice in stop_video\.test"):
        registry.register(Entry("own", 1))
    with pytest.raises(ValueError, match="'a/b' cannot be the name of a file"):
        registry.register(Entry("a/b"))
    assert list(registry) == ["own"]


METHOD = """
from dataclasses import dataclass
from stop_core.settings.methods import Method

@dataclass(frozen=True)
class Options:
    {option}

METHOD = Method("own", "own:Own", "of a test", Options)
"""


def _install(folder: Path, option: str) -> None:
    install(
        folder, "own-video", "own_video", METHOD.format(option=option),
        {"stop_video.methods/label": "own_video:METHOD"},
    )  # fmt: skip


def test_an_installed_method_is_a_choice_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, "lora_rank: int = 9\n    depth_of_mine: int = 1")
    see(tmp_path, monkeypatch)
    assert "own" in METHODS
    config = ExperimentConfig(method="own", options=("depth_of_mine=3",))
    assert config.parameters()["depth_of_mine"] == 3
    assert "depth_of_mine" in setting_types()


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("lora_rank: str = ''", "its option lora_rank has another type in another method"),
        ("rank: int", "missing 1 required positional argument: 'rank'"),
        ("rank: NoSuchType = 1", "name 'NoSuchType' is not defined"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_broken_package_is_left_out_with_one_sentence_that_names_it(
    option: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = setting_types()
    _install(tmp_path, option)
    see(tmp_path, monkeypatch)
    assert setting_types() == before
    assert ExperimentConfig(method="lora").parameters()["lora_rank"]
    with pytest.raises(ValueError, match="method must be one of"):
        ExperimentConfig(method="own")
    (said,) = caplog.messages
    assert said.startswith("the package own-video is left out: its method label cannot be used (")
    assert why in said


def test_an_option_that_every_method_has_is_refused_with_its_method_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = setting_types()
    _install(tmp_path, "epochs: str = ''")
    see(tmp_path, monkeypatch)
    assert setting_types() == before
    assert ExperimentConfig(method="lora", epochs=2).epochs == 2
    with pytest.raises(ValueError, match="the method own has the option epochs, which every"):
        ExperimentConfig(method="own")


def test_an_object_of_another_kind_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(
        tmp_path, "own-video", "own_video", METHOD.format(option="rank: int = 1"),
        {
            "stop_video.datasets/own": "own_video:METHOD",
            "stop_video.methods/own": "own_video:Options",
        },
    )  # fmt: skip
    see(tmp_path, monkeypatch)
    assert "own" not in DATASETS
    assert "own" not in METHODS
    assert all(isinstance(one, Method) for one in METHODS.values())
    assert all(isinstance(one, Dataset) for one in DATASETS.values())
    assert "it is a Method, and not a Dataset" in caplog.text
    assert "it is a type, and not a Method" in caplog.text
