"""Laws of `stop`: it runs each command as its file does, and its help is fast."""

import inspect
import subprocess
import sys
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path

import pytest

from pipelines.cli.commands import GROUPS, commands
from pipelines.stop import main, unknown, usage, version
from stop_core.datasets import DATASETS
from stop_core.settings.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_is_also_a_program(name: str) -> None:
    options, command = commands()[name].load()
    assert is_dataclass(options)
    assert signature(command).parameters["config"].annotation is options
    assert 'if __name__ == "__main__":' in (ROOT / "pipelines" / f"{name}.py").read_text()
    assert f"  {name}" in usage()


def test_no_command_is_in_two_groups() -> None:
    assert len(commands()) == sum(map(len, GROUPS.values()))


def test_help_imports_no_library() -> None:
    done = _run("-X", "importtime", "-m", "pipelines.stop", "--help")
    assert done.returncode == 0
    for library in ("torch", "ray", "tyro", "numpy", "rich", "yaml"):
        assert f"| {library}\n" not in done.stderr


def test_options_of_a_command_import_neither_torch_nor_ray() -> None:
    """They take seconds, and --help and a mistyped option need neither."""
    program = (
        "import sys; from pipelines.cli.commands import commands\n"
        "for name, command in commands().items():\n"
        "    command.load(); assert not {'torch', 'ray'} & set(sys.modules), name"
    )
    done = _run("-c", program)
    assert done.returncode == 0, done.stderr


def test_help_of_a_command_is_that_of_its_file() -> None:
    through, itself = (
        _run("-m", "pipelines.stop", "doctor", "--help"),
        _run("pipelines/doctor.py", "--help"),
    )
    assert through.returncode == itself.returncode == 0
    # The line of usage contains the name of the program.
    assert "usage: stop doctor" in through.stdout
    assert through.stdout == itself.stdout.replace("pipelines/doctor.py", "stop doctor")


def test_exit_code_of_a_command_is_kept() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--no-such-option"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("typed", "name"), [("trian", "train"), ("bench", "benchmark"), ("docter", "doctor")]
)
def test_misspelled_command_gets_a_suggestion(typed: str, name: str) -> None:
    assert f"did you mean {name}" in unknown(typed)


def test_unknown_command_refers_to_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["zzzzzz"])
    assert ended.value.code == 2
    assert "stop --help" in capsys.readouterr().err


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version as installed

    assert version().startswith(f"stop {installed('stop-video')},")


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    from pipelines.completion import script

    file = tmp_path / "stop.bash"
    file.write_text(script("bash"))

    def completed(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        program = f"""source {file}
            COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
            _tyro_stop; printf '%s\\n' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert set(completed("stop", "")) == {*commands(), "-h", "--help"}
    assert completed("stop", "do") == ["doctor"]
    assert completed("stop", "train", "--learning-r") == ["--learning-rate"]
    assert {"ste", "hard"} <= set(completed("stop", "train", "--selection", ""))
    assert set(completed("stop", "train", "--method", "")) >= set(METHODS)
    assert set(completed("stop", "preprocess", "--dataset", "")) >= set(DATASETS)


def test_the_examples_of_a_command_fit_a_terminal_of_80_columns() -> None:
    for command in commands().values():
        examples = inspect.cleandoc(command.load()[0].__doc__ or "").partition("Examples:")[2]
        assert max(map(len, examples.splitlines()), default=0) <= 80, command.name
