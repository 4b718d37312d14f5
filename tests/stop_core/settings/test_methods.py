"""Laws of the registry of methods and of their options."""

from dataclasses import dataclass
from typing import Literal

import pytest

from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig, setting_types
from stop_core.settings.methods import METHODS, Method, as_words, option_types


@dataclass(frozen=True)
class Options:
    """Options of every type."""

    rank: int = 4
    scale: float = 0.5
    shared: bool = False
    place: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


OWN = Method("own", "stop_core.model.baselines:ZeroShot", "for tests", Options)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Method:
    """Registers a method with options, for one test."""
    monkeypatch.setattr(METHODS, "_entries", {**METHODS._entries, "own": OWN})
    return OWN


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_video_model_with_a_line_of_help(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert issubclass(method.load(), VideoModel)
    assert len(method.summary.splitlines()) == 1


def test_options_survive_the_way_through_words() -> None:
    options = Options(rank=9, scale=1e-3, shared=True, place="after")
    assert OWN.parse_options(as_words(options)) == options
    assert OWN.parse_options([]) == Options()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rank", "NAME=VALUE"),
        ("depth=3", "depth is no option of the method own; it has rank, scale, shared, place"),
        ("rank=three", "rank must be int, got 'three'"),
        ("rank=0", "rank must be at least 1"),
        ("shared=maybe", "shared must be bool"),
        ("place=under", "place must be one of before, after"),
    ],
)
def test_a_wrong_option_is_refused_by_name(own: Method, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExperimentConfig(method="own", options=(word,))


def test_an_option_is_part_of_the_identity_and_its_default_is_not_another(own: Method) -> None:
    usual = ExperimentConfig(method="own")
    assert usual.hash == ExperimentConfig(method="own", options=("rank=4",)).hash
    assert usual.hash != ExperimentConfig(method="own", options=("rank=5",)).hash


def test_options_are_settings_by_name(own: Method) -> None:
    config = ExperimentConfig.from_names({"method": "own", "rank": 9, "n_s": 3})
    assert config.method_options == Options(rank=9)
    assert config.stop.n_s == 3
    assert config.parameters()["rank"] == 9
    assert ExperimentConfig.from_parameters(config.parameters()) == config
    assert setting_types()["place"] == Literal["before", "after"]
    with pytest.raises(ValueError, match="rank is no option of the method stop"):
        ExperimentConfig.from_names({"method": "stop", "rank": 9})


@pytest.mark.parametrize("name", METHODS)
def test_no_option_has_the_name_of_another_setting(name: str) -> None:
    core, own = ExperimentConfig().parameters(), option_types([METHODS[name]])
    assert not core.keys() & own.keys()
    assert own.items() <= setting_types().items()


def test_only_a_probe_reads_no_text_and_coupled_methods_prompt_it() -> None:
    every = METHODS.values()
    assert {one.name for one in every if not one.reads_text} == {"linear-probe"}
    assert {one.name for one in every if not one.trains} == {"zero-shot"}
    prompted = {one.name for one in every if one.prompts_text}
    assert prompted == {"maple", "vop", "dgl", "stop-published"}
