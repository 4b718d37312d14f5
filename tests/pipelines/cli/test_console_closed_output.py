"""A command whose output is closed exits quietly, whatever it was printing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli.console import UNREAD

ROOT = Path(__file__).resolve().parents[3]
# Of all that a command imports only the module under test: an import takes a second.
_WITH = "import os, sys\nfrom pipelines.cli.console import ending_with_reader\n"
_WITH += "with ending_with_reader(): "


def _unread(*words: str, both: bool = False) -> tuple[int, str]:
    """Returns exit code and stderr of a program whose stdout (or both streams) is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=writer,
        stderr=writer if both else subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("words", ["--help", "--version", "predict --help"])
def test_help_and_other_texts_end_without_a_traceback(words: str) -> None:
    assert _unread("-m", "pipelines.stop", *words.split()) == (UNREAD, "")


@pytest.mark.parametrize(
    "prints",
    [
        "print('a row')",  # noticed at the end
        "print('a row', flush=True)",  # noticed in between
        "[print('a row of a table' * 10) for _ in range(10_000)]",
        "print('a row'), sys.exit(1)",
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_rows_end_without_a_traceback(prints: str, both: bool) -> None:
    assert _unread("-c", f"{_WITH}{prints}", both=both) == (UNREAD, "")


def test_a_command_whose_progress_is_not_read_ends_quietly() -> None:
    program = "from pipelines.cli.options import run\nfrom pipelines.cli.console import say\n"
    assert _unread("-c", f"{program}run(lambda: say('progress'))", both=True)[0] == UNREAD


def test_another_broken_pipe_is_a_failure() -> None:
    program = f"r, w = __import__('os').pipe(); __import__('os').close(r)\n{_WITH}os.write(w, b'x')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Broken pipe" in done.stderr


def test_a_command_without_stdout_succeeds() -> None:
    program = f"{_WITH}print('a row')"
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, program], cwd=ROOT)
    assert done.returncode == 0
