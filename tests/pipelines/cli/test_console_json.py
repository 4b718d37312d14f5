"""Laws of --json: stdout is one JSON document, whatever the command prints and however it ends."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli.commands import commands
from pipelines.cli.console import Paused, RunError, add_result, print_result, wants_json
from pipelines.cli.options import run
from pipelines.stop import main

ROOT = Path(__file__).resolve().parents[3]


def _document(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(text, parse_constant=refuse)
    assert isinstance(document, dict)
    return document


def _ended(body: Callable[[], object], *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(body, ["--json", *words])
    return int(ended.value.code or 0)


def test_the_result_is_the_document_and_all_other_output_is_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def body() -> None:
        assert wants_json()
        print_result("a row for people")
        print("a library's line")
        add_result(file=Path("a/b"), metrics={"top1": np.float64(0.5), "loss": float("nan")})
        add_result(rows=[{"count": np.int64(3)}], name="\x1b[31mred\x9b")
        add_result(rows=[(1, None)])

    assert _ended(body) == 0
    printed = capsys.readouterr()
    assert _document(printed.out) == {
        "file": "a/b",
        "metrics": {"top1": 0.5, "loss": None},
        "rows": [{"count": 3}, [1, None]],
        "name": "\x1b[31mred\x9b",
        "exit_code": 0,
    }
    assert printed.out.isascii()
    assert "\x1b" not in printed.out
    assert printed.err == "a row for people\na library's line\n"
    assert not wants_json()


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (RunError("the disk is full"), 1),
        (ValueError("the disk is full"), 1),
        (Paused("the disk is full"), 75),
    ],
)
def test_a_failure_is_a_field_and_keeps_its_exit_code(
    problem: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        add_result(rows=[1])
        raise problem

    assert _ended(body) == code
    printed = capsys.readouterr()
    assert _document(printed.out) == {"rows": [1], "error": "the disk is full", "exit_code": code}
    assert printed.err == "error: the disk is full\n"


def test_an_interrupt_and_a_mistake_of_ours_end_the_document_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert _ended(interrupted) == 130
    assert _document(capsys.readouterr().out)["exit_code"] == 130

    def mistaken() -> None:
        raise KeyError("postgresql://me:secret@host")

    with pytest.raises(KeyError):
        run(mistaken, ["--json"])
    out = capsys.readouterr().out
    assert _document(out)["exit_code"] == 1
    assert "secret" not in out


@pytest.mark.parametrize("name", sorted(commands()))
@pytest.mark.parametrize("words", ["--no-such-option", "--help", "--config no.yaml"])
def test_every_command_prints_one_document(
    name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--json", *words.split()])
    printed = capsys.readouterr()
    document = _document(printed.out)
    is_help = words == "--help" and commands()[name].has_result
    assert document["exit_code"] == ended.value.code == (0 if is_help else 2)
    assert ("error" in document) is not is_help
    assert printed.err
    if words == "--no-such-option" and commands()[name].has_result:
        assert "--no-such-option" in document["error"]
    if not commands()[name].has_result:
        assert document["error"] == "this command has no result for scripts; leave --json out"


def test_a_child_process_does_not_write_into_the_document() -> None:
    program = (
        "import os, subprocess\nfrom pipelines.cli.options import run\n"
        "run(lambda: (os.write(1, b'raw '), subprocess.run(['echo', 'child'])), ['--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert _document(done.stdout) == {"exit_code": 0}
    assert done.stderr == "raw child\n"
