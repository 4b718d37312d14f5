"""The comparison table for readers: rounded cells, marks for the best results, and notes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from stop_core.evaluation.stored_predictions import reranked_name
from stop_core.storage.escaping import in_line

from .table import RERANKED, ComparisonTable

Mark = Literal["", "best", "second"]

_HEADINGS = {
    "method": "method",
    "trainable_parameters": "trainable",
    "interval": "95% interval",
    "difference": "difference",
    "difference_interval": "its interval",
    "p_holm": "p",
    "step_seconds": "ms/step",
    "memory_megabytes": "MB",
    "seeds": "seeds",
    "val_top1": "val top-1",
    "test_top1": "test top-1",
    "test_top5": "top-5",
    "test_mean_class": "mean class",
    "val_base_top1": "val base",
    "test_harmonic_mean": "harmonic mean",
    "test_base_top1": "base",
    "test_novel_top1": "novel",
    "val_t2v_r1": "val t2v R@1",
    "test_t2v_r1": "t2v R@1",
    "test_t2v_r5": "t2v R@5",
    "test_t2v_r10": "t2v R@10",
    "test_t2v_mean_rank": "t2v MnR",
    "test_v2t_r1": "v2t R@1",
    "test_v2t_r5": "v2t R@5",
    "test_v2t_r10": "v2t R@10",
    "test_v2t_mean_rank": "v2t MnR",
}
_HEADINGS |= {
    f"test_{name}_{measure}": f"{title} {_HEADINGS[f'test_{measure}']}"
    for name, title in (("dsl", "DSL"), ("qb_norm", "QB-Norm"))
    for measure in RERANKED
}
_FURTHER = tuple(f"test_{name}_{m}" for name in ("dsl", "qb_norm") for m in RERANKED[1:])
ON_SCREEN = (
    *_FURTHER,
    "memory_megabytes", "test_top5", "test_v2t_mean_rank", "test_v2t_r10", "test_v2t_r5",
    "test_t2v_mean_rank", "step_seconds", "test_mean_class", "test_v2t_r1", "test_t2v_r10",
    "difference_interval", "test_t2v_r5", "seeds", "val_t2v_r1", "val_top1",
    "val_base_top1",
)  # fmt: skip
"""The columns that a narrow terminal omits, in this order."""
ON_PAPER = (
    *_FURTHER,
    "memory_megabytes", "step_seconds", "seeds", "test_top5", "difference_interval",
    "val_top1", "val_base_top1", "val_t2v_r1", "test_v2t_mean_rank", "test_t2v_mean_rank",
    "test_mean_class", "test_v2t_r5", "test_v2t_r10", "interval",
)  # fmt: skip
"""The columns that a narrow page omits: papers report the usual measures of the field first."""
_RERANK_NOTES = {
    "dsl": "DSL: re-ranked by the dual softmax, which uses the other queries of the test set.",
    "qb-norm": "QB-Norm: re-ranked with the captions of the training split.",
}
PUBLISHED_NOTE = "published, not ours: other code, budget and rule of selection"


@dataclass(frozen=True)
class Cell:
    """The text of one cell, and its rank in its column."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Note:
    """A sentence below the table."""

    text: str
    about: str = ""
    """The column that it explains; empty: the whole table."""


Row = dict[str, Cell]
"""The cells of a row by the name of their column."""


@dataclass(frozen=True)
class Sheet:
    """A table of texts, which every format renders in its own way."""

    title: str
    columns: dict[str, str]
    """Headings by name. The first column has texts, aligned to the left; the others numbers."""
    ours: list[Row]
    published: list[Row]
    notes: list[Note] = field(default_factory=list)

    def without(self, *names: str) -> "Sheet":
        """Returns the sheet without some columns and their notes."""
        columns = {name: self.columns[name] for name in self.columns if name not in names}
        notes = [note for note in self.notes if note.about not in names]
        return replace(self, columns=columns, notes=notes)

    def narrowed(self, order: Sequence[str], fits: "Callable[[Sheet], bool]") -> "Sheet":
        """Returns the sheet without as many of these columns, in this order, as it takes to fit."""
        sheet = self
        for name in order:
            if fits(sheet):
                break
            sheet = sheet.without(name)
        return sheet


def make_sheet(table: ComparisonTable) -> Sheet:
    """Rounds and marks the numbers of a table; best and second are chosen among our rows only."""
    frame = table.frame()
    columns = _columns(table, frame)
    marks = {measure: _marks(frame, measure) for measure in _names(table.tested)}
    rows: dict[str, list[Row]] = {"ours": [], "published": []}
    records: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    for number, row in enumerate(records):
        cells = {
            name: Cell(in_line(_text(row, name, table)), marks.get(name, {}).get(number, ""))
            for name in columns
        }
        rows[row["kind"]].append(cells)
    notes = [replace(note, text=in_line(note.text)) for note in _notes(table, frame)]
    unit = "in percent" if table.task == "recognition" else "in percent (MnR: mean rank, from 1)"
    source = f", trained on {table.trained_on}" if table.trained_on else ""
    title = f"{table.division}: {table.task}{source}, {unit}"
    return Sheet(in_line(title), columns, rows["ours"], rows["published"], notes)


def _names(measures: Sequence[str]) -> list[str]:
    return [measure.replace("/", "_") for measure in measures]


def _columns(table: ComparisonTable, frame: pd.DataFrame) -> dict[str, str]:
    validation, primary, *others = _names(table.measures)
    compared = ("difference", "difference_interval", "p_holm") if len(table.experiments) > 1 else ()
    costs = ("step_seconds", "memory_megabytes") if frame["step_seconds"].notna().any() else ()
    no_validation = all(protocol.full_training for protocol in table.protocols.values())
    chosen = () if table.trained_on or no_validation else (validation,)
    names = ["method", "trainable_parameters", *chosen, primary, "interval"]
    return {n: _HEADINGS[n] for n in (*names, *compared, *others, *costs, "seeds")}


def _marks(frame: pd.DataFrame, measure: str) -> dict[int, Mark]:
    """Returns best and second by the rounded numbers: equal texts get equal marks."""
    factor = 1 if measure.endswith("rank") else -100
    ours = frame[frame["kind"] == "ours"][f"{measure}_mean"].dropna().astype(float)
    shown = (factor * ours).round(1)
    marks: dict[int, Mark] = {}
    names: tuple[Mark, Mark] = ("best", "second")
    for value, mark in zip(sorted(set(shown)), names, strict=False):
        marks |= dict.fromkeys(shown.index[shown == value].tolist(), mark)
    return marks if len(shown) > 1 else {}


def _text(row: dict[str, Any], name: str, table: ComparisonTable) -> str:
    ours, value = row["kind"] == "ours", row.get(name, math.nan)
    match name:
        case "method":
            return str(value) if ours else f"{value}\u00a0†"
        case "interval":
            return _interval(row, _names(table.tested)[0], "")
        case "difference_interval":
            return _interval(row, "difference", "+")
        case "difference" if ours and row["method"] == table.baseline:
            return "baseline"
        case "seeds":
            if not ours:
                return ""
            have, planned = len(row["seeds"].split()), len(table.experiments[row["method"]])
            return str(have) if have == planned else f"{have} of {planned}"
        case "trainable_parameters" if not ours and pd.notna(value):
            return f"{value / 1e6:g} M"
    if name in _NUMBERS:
        return "" if pd.isna(value) else _NUMBERS[name](value)
    mean, factor = row[f"{name}_mean"], 1 if name.endswith("rank") else 100
    if pd.isna(mean):
        empty = not ours or (name.startswith("val") and bool(row["seeds"]))
        return "" if empty else "missing"
    spread = row[f"{name}_std"]
    return f"{factor * mean:.1f}" + ("" if pd.isna(spread) else f" ± {factor * spread:.1f}")


_NUMBERS: dict[str, Callable[[float], str]] = {
    "trainable_parameters": "{:,.0f}".format,
    "difference": lambda value: f"{100 * value:+.1f}".replace("-", "−"),
    "p_holm": lambda p: "<.001" if p < 0.001 else "1" if p >= 0.9995 else f"{p:.3f}"[1:],
    "step_seconds": lambda value: f"{1000 * value:.0f}",
    "memory_megabytes": "{:,.0f}".format,
}


def _interval(row: dict[str, Any], name: str, sign: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if pd.isna(low):
        return ""
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]".replace("-", "−")


def _notes(table: ComparisonTable, frame: pd.DataFrame) -> list[Note]:
    videos = next((row["test_videos"] for row in table.statistics.values()), 0)
    several = any(len(table.by_seed(title)) > 1 for title in table.results)
    over = f"{videos:,} test videos" + (" and the seeds" if several else "")
    notes = [Note("Mean ± standard deviation over seeds.")] if several else []
    if table.further:
        notes.append(
            Note(
                "Each seed is the mean of its trainings on all folds; a video that several folds "
                "test is drawn, or swapped, with all of its answers."
            )
        )
    notes += [Note(text) for text in _protocols(table)]
    notes.append(Note(f"95% interval: bootstrap of the mean over {over}.", "interval"))
    if frame["p_holm"].notna().any():
        test = "McNemar's exact test" if "test/top1" in table.tested else "the paired bootstrap"
        count = int(frame["p_holm"].notna().sum())
        corrected = f", corrected for {count} comparisons (Holm)" if count > 1 else ""
        text = f"Difference: to {table.baseline}, on the same videos; p: {test}{corrected}."
        notes.append(Note(text, "difference"))
    if frame["step_seconds"].notna().any():
        notes.append(Note("ms/step: median over a row's training steps.", "step_seconds"))
        kind = "of tensors on the GPU, or without a GPU of the process"
        notes.append(Note(f"MB: peak memory of a training, {kind}.", "memory_megabytes"))
    notes += [Note(text) for text in table.notes]
    if table.rerank != "none":
        column = f"test_{reranked_name(table.rerank)}_t2v_r1"
        notes.append(Note(_RERANK_NOTES[table.rerank], column))
    for source in dict.fromkeys(row.source for row in table.published):
        notes.append(Note(f"† Published, not ours, as listed in: {source}."))
    # The note on full training says how its epoch is chosen.
    chosen = [table.measures[0] in result.metrics for title, result in table.all_results()
              if not table.protocols[title].full_training]  # fmt: skip
    rule = "; epochs chosen on validation" if all(chosen) else "; no validation: the last epoch"
    rule = rule if chosen else ""
    rule = f"; trained on {table.trained_on} only" if table.trained_on else rule
    commits = sorted({result.git_commit[:12] for _, result in table.all_results()})
    data = ", ".join(data[:12] for data in table.data_hashes.values())
    notes.append(Note(f"Data {data}, commit {', '.join(commits)}{rule}."))
    return notes


def _protocols(table: ComparisonTable) -> list[str]:
    rows: dict[str, list[str]] = {}
    for title, protocol in table.protocols.items():
        rows.setdefault(str(protocol), []).append(title)
    return [
        f"Protocol{'' if len(rows) == 1 else ' of ' + ', '.join(titles)}: {protocol}."
        for protocol, titles in rows.items()
        if protocol
    ]
