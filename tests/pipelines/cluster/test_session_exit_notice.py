"""No process ends without a message."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _stderr(end: str) -> str:
    code = f"import os, sys\nfrom pipelines.cluster.session import notify_of_exit as leave\n{end}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return result.stderr


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_termination_from_outside_is_reported_in_one_line(end: str) -> None:
    (line,) = _stderr(f"leave('x'); leave('x')\n{end}").splitlines()
    assert line.startswith("error: the process was ended from outside of Python")
    assert line.endswith("run the same command again to resume")


@pytest.mark.parametrize("end", ["pass", "sys.exit(1)"])
def test_normal_exit_prints_nothing(end: str) -> None:
    assert _stderr(f"leave('x')\n{end}") == ""
