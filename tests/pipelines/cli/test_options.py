"""Laws of the command line: options build the config, and a mistake is one sentence."""

import logging
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.cli.console import RunError
from pipelines.cli.options import flatten, from_mapping, parse, run, spell_out
from pipelines.train import TrainConfig
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS


@dataclass(frozen=True)
class Inner:
    """Inner."""

    alpha: float = 0.5
    """Between 0 and 1."""
    depth: int | None = None
    """Depth."""
    deep: bool = False
    """Deep."""
    wide: bool | None = None
    """Many words that are broken by hand, and of which a line of the box holds more than
    these (default: as deep)."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}")


@dataclass(frozen=True)
class Options:
    """Options of a test."""

    name: str = "x"
    """A name."""
    paths: tuple[Path, ...] = ()
    """Paths."""
    inner: Inner = field(default_factory=Inner)


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_a_name_of_a_registry_is_a_choice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    usual = parse(TrainConfig, ["--method", "vpt-deep", "--cache", "c"])
    assert usual.experiment == ExperimentConfig(method="vpt-deep")
    file = _file(tmp_path, "method: maple\n")
    assert parse(TrainConfig, ["--config", file]).experiment.method == "maple"
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "stpo"], "--method cannot be 'stpo'; did you mean stop?"),
        (["--method=xyz"], f"--method cannot be 'xyz'; known: {', '.join(sorted(METHODS))}"),
        (["--device", "cuda"], "--device cannot be 'cuda'; known: auto, cpu, gpu"),
    ],
)
def test_an_unknown_name_is_refused_in_a_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(TrainConfig, words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_nested_fields_are_options() -> None:
    assert parse(Options, ["--alpha", "0.25", "--depth", "3"]).inner == Inner(0.25, 3)


@pytest.mark.parametrize(
    ("words", "deep"),
    [
        ("--deep", True),
        ("--deep --name y", True),
        ("--name y --deep", True),
        ("--deep True", True),
        ("--deep False --name y", False),
        ("--deep=False", False),
        ("--deep --no-deep", False),
        ("", False),
    ],
)
def test_a_flag_needs_no_value(words: str, deep: bool) -> None:
    assert parse(Options, words.split()).inner.deep is deep


@pytest.mark.parametrize(
    ("words", "wide"), [("", None), ("--wide", True), ("--no-wide", False), ("--wide False", False)]
)
def test_a_flag_can_be_left_to_the_program(words: str, wide: bool | None) -> None:
    assert parse(Options, words.split()).inner.wide is wide


def test_the_words_of_a_config_are_read_as_this_config() -> None:
    config = Options("z", (Path("p q"),), Inner(0.75, None, True, False))
    words = spell_out(config)
    assert {"--deep", "--no-wide"} <= set(words)
    assert parse(Options, shlex.split(" ".join(words))) == config


def test_help_fits_the_terminal_and_has_each_default_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        parse(Options, ["--config", _file(tmp_path, "alpha: 0.1\n"), "--help"], "stop test")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    assert "--alpha FLOAT Between 0 and 1. (default: 0.5; in config.yaml: 0.1)" in text
    assert "--depth INT Depth. --deep, --no-deep Deep. --wide, --no-wide Many words" in text
    assert text.endswith("holds more than these. (default: as deep)")
    assert "--paths PATH ... Paths. inner options" in text


def test_command_line_overrides_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    file = _file(tmp_path, "name: y\nalpha: 0.1\ndepth: 2\npaths: [a, b]\n")
    options = parse(Options, ["--config", file, "--alpha", "0.9"])
    assert options == Options("y", (Path("a"), Path("b")), Inner(0.9, 2))


def test_flatten_and_from_mapping_are_inverse() -> None:
    options = Options("z", (Path("p"),), Inner(0.75, None))
    assert from_mapping(Options, flatten(options), "here") == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alhpa: 1", "'alhpa'"),
        ("alpha: 2", "alpha must lie between 0 and 1"),
        ("depth: deep", "depth cannot be 'deep'"),
        ("- alpha", "option: value"),
        ("alpha: [", "cannot be read"),
    ],
)
def test_mistake_in_the_file_is_reported_with_its_name(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _file(tmp_path, text)
    with pytest.raises(SystemExit) as stop:
        parse(Options, ["--config", file])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert file in shown


@pytest.mark.parametrize(
    "argv",
    [
        ["--alpha", "2"],
        ["--alpah", "0.5"],
        ["--depth", "x"],
        ["--config"],
        ["--config", "no.yaml"],
        ["--quiet", "--verbose"],
    ],
)
def test_bad_usage_exits_with_2_without_a_traceback(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Options, argv)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.err or shown.out
    assert "Traceback" not in shown.err + shown.out


@pytest.mark.parametrize("kind", [ValueError, OSError, RunError])
def test_failure_is_one_sentence_and_exit_code_1(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise kind("the disk is full; make room")

    with pytest.raises(SystemExit) as stop:
        run(fail)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: the disk is full; make room\n"


def test_unexpected_exception_is_not_hidden() -> None:
    def fail() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run(fail)


@pytest.mark.parametrize(
    ("words", "level"),
    [("", logging.INFO), ("--quiet", logging.WARNING), ("--name y --verbose", logging.DEBUG)],
)
def test_verbosity_is_an_option_of_every_command(words: str, level: int) -> None:
    parse(Options, words.split())
    for name in ("pipelines", "stop_core"):
        assert logging.getLogger(name).level == level


def test_help_lists_the_common_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Options, ["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--config", "--verbose", "--quiet", "--alpha"))


def test_quiet_command_still_reports_its_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("the disk is full")

    parse(Options, ["--quiet"])
    with pytest.raises(SystemExit):
        run(fail)
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_a_recipe_has_a_mapping_for_another_command(tmp_path: Path) -> None:
    from pipelines.preprocessing.make_cache import PreprocessConfig
    from pipelines.train import TrainConfig

    file = _file(tmp_path, "preprocess: {dataset: ucf101, data-root: d, frames: 9}\nframes: 3\n")
    assert parse(PreprocessConfig, ["--config", file]).frames == 9
    assert parse(TrainConfig, ["--config", file]).experiment.frames == 3
    words = ["--config", file, "--frames", "4"]
    assert parse(PreprocessConfig, words).frames == 4, "the command line overrides it"
    with pytest.raises(SystemExit):
        parse(Options, ["--config", _file(tmp_path, "teleport: {frames: 9}")])
