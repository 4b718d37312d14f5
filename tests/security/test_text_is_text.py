"""Untrusted names, captions and messages are shown, and interpreted by no output format."""

import ast
import csv
import html
import io
import json
import re
import shlex
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import markdown_it
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipelines.benchmark import BenchmarkConfig
from pipelines.cli import console as console_module
from pipelines.cli.console import RunError
from pipelines.cli.options import run, spell_out
from pipelines.predict import _print_table
from pipelines.sweeping.report.figures import label, value_text
from pipelines.tables.formats import latex, markdown, page, print_sheet
from pipelines.tables.sheet import Cell, Note, Sheet
from stop_core.cache import CacheConfig
from stop_core.explain import training_figures
from stop_core.explain.contact_sheet import Strip, draw_contact_sheet
from stop_core.explain.figure import shortened, wrapped
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.escaping import csv_text, in_figure, in_line, in_markdown, visible
from stop_core.trained_model.card import render_card
from stop_core.trained_model.files import ClassLabel, ModelRecord, Provenance
from stop_core.trained_model.frames import Preprocessing

ROOT = Path(__file__).resolve().parents[2]
# The markup of every format, and random mixes of its special characters.
HOSTILE = [
    *("cost_$^$", "$", "$$", "a$b$c", r"\$x$", r"$\frac{", r"\\$x\\$", "$$$", "^_{}", "%$#&~"),
    *("[/bold]", "[bold]x[/bold]", "[link=http://evil]x[/link]", ":smile:", "[red", "]["),
    *("\x1b[31mred", "\x1b]8;;http://evil\x07x", "a\rb", "\x9b2J", "\x07\x08\x00", "a\nb\tc"),
    *("\u202egnp.exe", "\u2066a\u2069", "\u200fa", "\ufeff", "\U000e0041", "\ud800", "\x85"),
    *("a|b|c", "|---|", "[x](javascript:alert(1))", "![x](http://evil/x.png)", "<img src=x>"),
    *("`code`", "``", "**b**", "_i_", "~~s~~", "# h", "&lt;", "<!--", "www.evil.org"),
    *("http://evil.org", "<http://evil.org>", "@user", "#12", "\\", "a\\|b", "\\[x](y)"),
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=cmd|"/c calc"!A0', "'=1", "\n=1"),
    *(";touch x", "$(touch x)", "`touch x`", "a b", "'", '"', "a'b;touch x", "-rf", "~", "*", "!x"),
    *("", " ", "x" * 3000, "e\u0301", "日本語", "किताब", "می\u200cخواهم"),
]
HARMLESS = [
    "ride_bike",
    "a person rides",
    "日本語",
    "می\u200cخواهم",
    "हिन्दी",
    "👩\u200d🚀",
    "naïve, 50%",
]
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _mixed(count: int = 300) -> list[str]:
    chance = np.random.default_rng(0)
    alphabet = [*"$\\{}[]()<>|`*_#&@!=+-:;'\"^~%/. ab1", "\x1b", "\x9b", "\n", "\r", "\t", "\u202e"]
    alphabet += ["[/", "](", "www.", "://", "\ud83d"]
    return ["".join(chance.choice(alphabet, chance.integers(1, 12))) for _ in range(count)]


ALL = [*HOSTILE, *_mixed()]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_names_of_any_script_stay_as_they_are(text: str) -> None:
    assert visible(text) == in_line(text) == in_figure(text) == in_markdown(text) == text


def test_no_control_character_reaches_a_terminal_and_all_are_visible(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for text in ALL:
        console_module.say(f"class {text}")
        out = capsys.readouterr().out
        assert not CONTROLS.search(out)
        escaped = in_line(text)
        assert "\n" not in escaped
        # The escapes are those of JSON, so a line of JSON keeps its meaning.
        line = visible(json.dumps({"video": text}, ensure_ascii=False))
        assert json.loads(line) == {"video": text}
        assert line.isprintable() or "\u200c" in line or "\u200d" in line


def test_an_error_is_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    for text in HOSTILE:
        with pytest.raises(SystemExit):
            run(partial(_fail, text))
        assert not CONTROLS.search(capsys.readouterr().err)


def _fail(text: str) -> None:
    raise RunError(f"the class {text} is gone")


WRITERS = ("print", "Console", "sys.stdout.write", "sys.stderr.write")


def test_only_print_result_and_the_log_handler_print() -> None:
    found = []
    for path in [*(ROOT / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in WRITERS:
                found.append((path.name, ast.unparse(node.func)))
            if isinstance(node, ast.Attribute) and node.attr == "to_csv":
                found.append((path.name, "to_csv"))
    # The second one prints the document of --json, which is ASCII.
    prints = [("console.py", "print")] * 2
    assert sorted(found) == [*prints, ("console.py", "sys.stderr.write")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], str]:
    def printed(shown: object) -> str:
        buffer = io.StringIO()
        console = console_module.console(4000)
        console.file = buffer
        if isinstance(shown, Sheet):
            print_sheet(shown, console)
        else:
            console.print(shown)
        return buffer.getvalue()

    return printed


def test_terminal_tables_interpret_no_markup(terminal: Callable[[object], str]) -> None:
    from rich.table import Table

    for text in [one for one in ALL if one.strip() and "\n" not in one and len(one) < 1000]:
        table = Table(title=text, title_justify="left")
        table.add_column(text, no_wrap=True)
        table.add_row(text)
        for out in (terminal(table), terminal(text), terminal(_sheet(text))):
            assert not CONTROLS.search(out)
            assert visible(text).strip() in out.replace(" " * 7, "\t") or "\t" in text


def _sheet(text: str) -> Sheet:
    """Returns a sheet as `make_sheet` does, with every text in one line."""
    shown = in_line(text)
    columns = {"method": "method", "test_top1": "top-1"}
    row = {"method": Cell(shown, "best"), "test_top1": Cell("61.5 ± 0.2")}
    return Sheet(shown, columns, [row], [row], [Note(shown)])


def _markdown() -> "markdown_it.MarkdownIt":
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def test_names_add_no_link_tag_or_code_to_markdown() -> None:
    for text in ALL:
        made = markdown(_sheet(text))
        assert not re.search(
            r"(?<!\\)://|www[.]", made, re.IGNORECASE
        )  # GitHub turns them into links
        tokens = _markdown().parse(made)
        inner = [child for token in tokens for child in token.children or ()]
        kinds = {token.type for token in [*tokens, *inner]}
        forbidden = {"link_open", "image", "html_inline", "html_block", "code_inline", "s_open"}
        assert not kinds & (forbidden | {"heading_open", "fence", "code_block"}), text
        assert sum(token.type == "table_open" for token in tokens) == 1
        cells = [token for token in tokens if token.type in ("td_open", "th_open")]
        assert len(cells) == 2 + 2 + 2 + 2  # headers, own rows, separator, published rows


def test_html_and_latex_have_only_the_texts() -> None:
    tags = set(re.findall(r"<(\w+)", page(_sheet("a"))))
    for text in ALL:
        made = page(_sheet(text))
        assert set(re.findall(r"<(\w+)", made)) <= tags
        assert html.escape(in_line(text)) in made
        assert not CONTROLS.search(made)
        assert not CONTROLS.search(latex(_sheet(text), "label"))


def test_a_model_card_interprets_no_name() -> None:
    for text in ALL:
        record = ModelRecord(
            ExperimentConfig(pretrained=text or None),
            (ClassLabel(text, (f"a photo of {text}", text)),),
            Preprocessing(4, 32, (0.5,) * 3, (0.5,) * 3),
            Provenance("f" * 16, run=text, dataset=text, metrics={"test/top1": 0.5},
                       versions={"torch": text}),
        )  # fmt: skip
        card = render_card(record)
        assert not CONTROLS.search(card)
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front)["library_name"] == "stop-video"
        tokens = _markdown().parse(body)
        inner = [child for token in tokens for child in token.children or ()]
        links = [child.attrs["href"] for child in inner if child.type == "link_open"]
        assert links == ["https://arxiv.org/abs/2503.15973"], text
        assert not {"image", "html_inline"} & {child.type for child in inner}, text
        assert not {"html_block", "code_block"} & {token.type for token in tokens}, text
        codes = {child.content for child in inner if child.type == "code_inline"}
        assert codes <= {"stop", "clip4clip"}, text


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    texts = [
        text for text in ALL if not re.search("[\ud800-\udfff]", text)
    ]  # pandas cannot store surrogates
    frame = pd.DataFrame({"method": texts, "=difference": [-0.5] * len(texts)})
    made = csv_text(frame)
    rows = list(
        csv.reader(
            io.StringIO(
                made.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), newline=""
            )
        )
    )
    for row in rows:
        assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert not row[1].startswith("=")
    assert {float(row[1]) for row in rows[1:]} == {-0.5}


def _saved(figure: Figure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # characters that the font does not have
        figure.savefig(io.BytesIO(), dpi=20)


def test_matplotlib_interprets_no_name_as_mathematics() -> None:
    for text in ALL:
        for made in (
            in_figure(text), shortened(text, 40), *wrapped(text), label(f"val/{text}"),
            value_text(text),
        ):  # fmt: skip
            assert not _parsed(made)[1]
            assert "\n" not in made
        assert _parsed(in_figure(text))[0] == in_line(text)
        # The formulas of the figure itself are still typeset.
        assert _parsed(f"$N_s$ {in_figure(text)}")[1]


def _parsed(text: str) -> tuple[str, bool | str]:
    """Returns the text as matplotlib draws it, and whether it is mathematics."""
    drawn: Any = Text(0, 0, text)
    parsed: tuple[str, bool | str] = drawn._preprocess_math(text)
    return parsed


@pytest.mark.slow
def test_figures_of_hostile_names_are_drawn() -> None:
    names = HOSTILE[:36]
    counts = torch.eye(len(names), dtype=torch.int64)
    _saved(training_figures.confusion(counts, names, "cost_$^$"))
    for text in HOSTILE:
        figure = Figure(figsize=(2, 1))
        figure.text(0, 0.5, f"$N_s$ {in_figure(text[:200])}")
        _saved(figure)
        frames = np.zeros((1, 8, 8, 3), np.uint8)
        sheet = draw_contact_sheet(text[:200], [Strip(text[:200], text[:50], frames)], 2, 32)
        assert isinstance(sheet, Image.Image)


def test_predictions_of_hostile_names_are_separate_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for text in ALL:
        row = {"video": f"/videos/{text}", "labels": [text], "probabilities": [0.5], "error": None}
        _print_table([row, row | {"error": text}], [])
        out = capsys.readouterr().out
        assert not CONTROLS.search(out)
        assert len(out.splitlines()) == 3


def test_commands_to_paste_are_quoted_for_the_shell(tmp_path: Path) -> None:
    config = CacheConfig(
        dataset="motion", fold=1, frames=2, size=32, limit=None, classes=(), splits=("train",),
        class_names=(), clips_hash="", task="recognition", crop="center", compression="none",
    )  # fmt: skip
    for text in [one for one in ALL if one and one.isascii() and "\0" not in one]:
        values: Any = {"dataset": text, "classes": (text,), "splits": (text,), "crop": text}
        hostile = replace(config, **values)
        words = shlex.split(hostile.command(text))
        assert words[:2] == ["stop", "preprocess"]
        assert [words[words.index(name) + 1] for name in ("--dataset", "--cache", "--splits")] == (
            [text] * 3
        )
        given = spell_out(BenchmarkConfig(cache=text))
        assert shlex.split(" ".join(given)) == ["--cache", text]
    command = replace(config, dataset=";touch x", classes=("$(touch y)",)).command(tmp_path)
    subprocess.run(["bash", "-c", command.replace("stop ", "true ", 1)], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())
