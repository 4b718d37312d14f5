"""Laws of the one command: it is its parts, it answers at once, and it knows them all."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pipelines.cli.commands import GROUPS, commands
from pipelines.stop import main, unknown, usage, version

ROOT = Path(__file__).resolve().parents[2]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", sorted(commands()))
def test_a_command_is_a_program_whose_options_are_a_dataclass(name: str) -> None:
    command = commands()[name]
    file = ROOT / (command.module.replace(".", "/") + ".py")
    tree = ast.parse(file.read_text())
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert command.options in classes
    assert 'if __name__ == "__main__":' in file.read_text()
    assert f"  {name}" in usage()


def test_no_command_is_in_two_groups() -> None:
    assert len(commands()) == sum(map(len, GROUPS.values()))


def test_the_list_of_commands_needs_no_library() -> None:
    # -X importtime names what is imported; anything of ours or of a library would be slow.
    said = _run("-X", "importtime", "-m", "pipelines.stop", "--help")
    assert said.returncode == 0
    for library in ("torch", "ray", "tyro", "numpy", "rich", "yaml"):
        assert f"| {library}\n" not in said.stderr


def test_a_command_says_what_its_file_says() -> None:
    through, itself = (
        _run("-m", "pipelines.stop", "doctor", "--help"),
        _run("pipelines/doctor.py", "--help"),
    )
    assert through.returncode == itself.returncode == 0
    # The first line has the name of the program, and may be broken elsewhere.
    assert "stop doctor" in through.stdout
    body = through.stdout[through.stdout.index("\n\n") :]
    assert body == itself.stdout[itself.stdout.index("\n\n") :]


def test_bad_usage_of_a_command_keeps_its_exit_code() -> None:
    assert _run("-m", "pipelines.stop", "doctor", "--no-such-option").returncode == 2


@pytest.mark.parametrize(
    ("typed", "meant"), [("trian", "train"), ("bench", "benchmark"), ("docter", "doctor")]
)
def test_a_slip_is_told_what_was_meant(typed: str, meant: str) -> None:
    assert f"did you mean {meant}" in unknown(typed)


def test_what_is_like_nothing_is_told_where_the_list_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["zzzzzz"])
    assert ended.value.code == 2
    assert "stop --help" in capsys.readouterr().err


def test_the_version_is_the_installed_one() -> None:
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
        said = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        return said.stdout.split()

    assert set(completed("stop", "")) == {*commands(), "-h", "--help"}
    assert completed("stop", "do") == ["doctor"]
    assert completed("stop", "train", "--learning-r") == ["--learning-rate"]
    assert "linear-probe" in completed("stop", "train", "--method", "")


def test_every_module_is_there() -> None:
    for command in commands().values():
        assert hasattr(import_module(command.module), command.options)
