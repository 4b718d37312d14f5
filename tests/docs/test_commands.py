"""Documented commands parse, documented files exist, and the tutorial runs."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.commands import Command, commands
from pipelines.cli.options import parse, run_command
from stop_core.datasets.motion.files import write_motion_dataset
from tests.notebooks.run import NOTEBOOKS, page_text, run_notebook

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *NOTEBOOKS]
)
SECRETS = "deploy/mlflow/.env"  # everybody makes their own
# An HTML comment above a block gives its use in this test: `run: STORY`, `file: STORY NAME`.
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S
)
_ENDS = {"|", ";", "&&", "||", "&", ">", ">>", "\n"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    kind: str
    mark: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines, with continuations joined."""
        return self.text.replace("\\\n", " ").splitlines()


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        for found in _BLOCK.finditer(page_text(page)):
            yield Block(page.name, found["kind"], found["mark"] or "", found["text"])


def _invocations(line: str) -> Iterator[tuple[Command, list[str]]]:
    """Yields the commands of this project in a line of shell, with their arguments."""
    words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
    words = shlex.split(line, comments=True) if not _ENDS & set(words) else words
    by_file = {f"pipelines/{one.name}.py": one for one in commands().values()}
    for place, word in enumerate(words):
        command = by_file.get(word)
        rest = words[place + 1 :]
        if word == "stop" and place == 0 and rest and not rest[0].startswith("-"):
            assert rest[0] in commands(), f"there is no command {line!r}"
            command, rest = commands()[rest[0]], rest[1:]
        if command is not None:
            end = next((i for i, w in enumerate(rest) if w in _ENDS), len(rest))
            yield command, [word for word in rest[:end] if word != "..."]


def _documented() -> list[tuple[str, Command, list[str]]]:
    return [
        (f"{block.page}: {line.strip()}", command, arguments)
        for block in _blocks()
        if block.kind == "sh"
        for line in block.lines
        for command, arguments in _invocations(line)
    ]


def test_all_documented_options_parse(own_package: Path) -> None:
    documented = _documented()
    assert {command.name for _, command, _ in documented} >= {"train", "sweep", "benchmark"}
    assert len(documented) > 25
    for where, command, arguments in documented:
        options, _ = command.load()
        try:
            parse(options, arguments)
        except SystemExit as end:
            if "--help" not in arguments or end.code != 0:
                pytest.fail(f"{where}: not understood")


def _towers(command: Command, arguments: list[str]) -> set[str]:
    """Returns the towers that a command trains on its --cache; empty if it names none."""
    settings: Any = parse(command.load()[0], arguments)
    if command.name == "train":
        return {settings.experiment.tower}
    if command.name == "sweep":
        return {settings.checked_space().fixed.get("tower", "tiny")}
    return set()


def test_a_documented_training_on_a_dataset_of_the_field_names_its_tower() -> None:
    """The default tower, `tiny`, takes frames of 32 pixels: such a command would be refused."""
    script = (ROOT / "deploy/slurm/stop.sbatch").read_text()
    (example,) = re.findall(r"^#   (sbatch (?:.*\\\n# *)*.*)$", script, re.MULTILINE)
    line = re.sub(r"\\\n# *", "", example)
    commands = [(line, *one) for one in _invocations(line)]
    seen = 0
    for where, command, arguments in [*_documented(), *commands]:
        cache = " ".join(arguments).partition("--cache ")[2].partition(" ")[0]
        if re.search("hmdb51|k400|ucf101|ssv2|msrvtt", cache):
            seen += 1
            assert "tiny" not in _towers(command, arguments), where
    assert seen > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_on_a_page_exist(page: Path) -> None:
    folders = "pipelines|stop_core|sweeps|tests|deploy|benchmarks|notebooks"
    for name in re.findall(rf"(?<![\w/~.])(?:{folders})/[\w./-]*\w", page_text(page)):
        assert (ROOT / name).exists() or name == SECRETS, name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page_text(page)):
        assert (page.parent / link).exists(), link


def test_documented_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for block in _blocks() if block.kind == "sh" for line in block.lines]
    wanted = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("make ")]
    assert wanted
    for words in wanted:
        assert {word for word in words if "=" not in word} <= targets, words


# The results of commands, read without MLflow, are those of the notebook.
_READ = """
(folder,) = Path("../outputs/sweeps").iterdir()
stored = pd.read_csv(folder / "trials.csv")
assert list(stored["mlflow_run_id"]) == list(trials["run_id"]), "best first"
assert list(stored["val/top1"]) == list(trials[measure])
assert len(settings) == 2 and trials[settings].notna().all(None)
(file,) = Path("../outputs/tables").glob("*/table.csv")
by_row = pd.read_csv(file).set_index("method")["test_top1_mean"]
pd.testing.assert_series_equal(rows["mean"], by_row[rows.index], check_names=False)
assert len(rows) == len(by_row)
"""
# Smaller settings for the test.
_SMALLER = {
    r"(?m)^stop train(?= +#)": "stop train --epochs 1",
    r"--epochs \d+": "--epochs 1",
    r"epochs: \d+": "epochs: 1",
    r"--seeds \d+": "--seeds 1",
    r"trials: \d+": "trials: 1",
}


def _smaller(text: str) -> str:
    for pattern, replacement in _SMALLER.items():
        text = re.sub(pattern, replacement, text)
    return text


def _run(command: Command, arguments: list[str]) -> None:
    """Runs the command in this process, which has started Ray already."""
    with pytest.raises(SystemExit) as end:
        run_command(command, arguments)
    assert end.value.code in (0, None), [command.name, *arguments]


def _typed(text: str) -> Iterator[tuple[Command, list[str]]]:
    """Runs a block in bash; yields each `stop` command in it as the shell expands it."""
    recorder = "stop() { printf '%s\\0' \"$@\" ''; }\n"
    done = subprocess.run(
        ["bash", "-euc", recorder + text], check=True, stdout=subprocess.PIPE, text=True
    )
    for one in done.stdout.split("\0\0")[:-1]:
        name, *arguments = one.split("\0")
        yield commands()[name], arguments


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("trained_here")
def test_the_pages_run_from_a_folder_of_videos_to_a_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_motion_dataset(Path("outputs/data/motion"), train=16, test=8, seed=1)
    stories = ("quick start", "tutorial", "after a training")
    blocks = {
        story: [b for b in _blocks() if b.mark.partition(": ")[2].startswith(story)]
        for story in stories
    }
    ran = [sum(b.mark.startswith("run") for b in blocks[story]) for story in stories]
    assert ran == [1, 5, 1]
    for block in [block for story in stories for block in blocks[story]]:
        text = _smaller(block.text)
        if block.mark.startswith("file: "):
            Path(block.mark.split()[-1]).write_text(text)
            continue
        # The first line of the one with a loop makes what the others read.
        first, _, rest = text.partition("\n") if "for class in" in text else (text, "", "")
        for part in (first, rest):
            for command, arguments in _typed(part):
                _run(command, arguments)
    said = capsys.readouterr().out
    for row in ("zero-shot CLIP", "linear probe", "static deep prompts", "STOP"):
        assert re.search(rf"{row}.*±?\d", said), said
    assert Path("sheet.png").stat().st_size > 1000
    assert list(Path("outputs/sweeps").glob("*/best.yaml"))
    assert len(re.findall(r"scene000\d\d_\S+ +\d+\.\d%", said)) >= 8, said
    assert {path.suffix for path in Path("outputs/explained/clips").iterdir()} == {".png", ".mp4"}
    assert Path("outputs/search.png").is_file()
    run_notebook("read_a_sweep.ipynb", tmp_path, _READ)
