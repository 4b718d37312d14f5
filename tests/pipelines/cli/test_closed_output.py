"""A command whose output is no longer read ends quietly, whatever it was printing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli.closed_output import UNREAD

ROOT = Path(__file__).resolve().parents[2]
_RUN = "from pipelines.cli.options import run\nimport os, sys\n"


def _unread(*words: str, both: bool = False) -> tuple[int, str]:
    """Exit code and stderr of a program whose stdout (or both streams) nobody reads."""
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


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "predict --help", "cache info --help", "completion bash"],
)
def test_help_and_other_texts_end_without_a_traceback(words: str) -> None:
    assert _unread("-m", "pipelines.stop", *words.split()) == (UNREAD, "")


@pytest.mark.parametrize(
    "prints",
    [
        "print('a row')",  # noticed at the end
        "print('a row', flush=True)",  # noticed in between
        "[print('a row of a table' * 10) for _ in range(10_000)]",
        "(print('a row'), sys.exit(1))",
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_rows_end_without_a_traceback(prints: str, both: bool) -> None:
    assert _unread("-c", f"{_RUN}run(lambda: {prints})", both=both) == (UNREAD, "")


def test_progress_that_is_not_read_ends_quietly_too() -> None:
    program = f"{_RUN}run(lambda: print('progress', file=sys.stderr, flush=True))"
    assert _unread("-c", program, both=True)[0] == UNREAD


def test_another_pipe_that_breaks_is_a_failure_with_its_reason() -> None:
    program = f"{_RUN}r, w = os.pipe(); os.close(r); run(lambda: os.write(w, b'x'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Broken pipe" in done.stderr


def test_a_command_without_any_stdout_does_its_work() -> None:
    program = f"{_RUN}run(lambda: print('a row'))"
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, program], cwd=ROOT)
    assert done.returncode == 0
