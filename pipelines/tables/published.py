"""Reads the published results of other papers from a CSV file, for a comparison table.

    dataset,method,source,venue,tower,family,params_m,t2v_r1,t2v_r5,...
    msrvtt,CLIP4Clip,"Liu et al., CVPR 2025",...,123.54,43.1,70.4,...

`dataset`, `method` and `source` are required, and at least one measure: `top1`, `top5`,
`mean_class`, or `t2v_` and `v2t_` with `r1`, `r5`, `r10`, `mnr`. Accuracies and recalls are in
percent, `mnr` is the mean rank, `params_m` the trainable parameters in millions. Leave a field
empty that the source does not give.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PERCENT = (
    "top1", "top5", "mean_class",
    "t2v_r1", "t2v_r5", "t2v_r10", "v2t_r1", "v2t_r5", "v2t_r10",
)  # fmt: skip
RANKS = {"t2v_mnr": "t2v_mean_rank", "v2t_mnr": "v2t_mean_rank"}
_REQUIRED = ("dataset", "method", "source")
_OPTIONAL = ("venue", "tower", "family", "params_m")


@dataclass(frozen=True)
class PublishedRow:
    """A result of another paper, measured with other code and data, and its source."""

    dataset: str
    method: str
    source: str
    venue: str = ""
    parameters: int | None = None
    """Trainable parameters, as published: rounded."""
    measures: dict[str, float] = field(default_factory=dict)
    """Measures of the test split by our names: shares from 0 to 1, and mean ranks."""

    @property
    def title(self) -> str:
        """The method and its venue."""
        return f"{self.method} ({self.venue})" if self.venue else self.method

    def columns(self) -> dict[str, Any]:
        """Returns the columns of a comparison table that a published row fills."""
        return {
            "kind": "published",
            "method": self.title,
            "source": self.source,
            "trainable_parameters": self.parameters,
            **{f"{name.replace('/', '_')}_mean": value for name, value in self.measures.items()},
        }


def read_published(path: Path) -> list[PublishedRow]:
    """Reads published rows; a ValueError about columns or values names the file and the line."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        if missing := [name for name in _REQUIRED if name not in columns]:
            raise ValueError(f"{path} has no column {missing[0]!r}; {_known()}")
        known = (*_REQUIRED, *_OPTIONAL, *PERCENT, *RANKS)
        if unknown := [name for name in columns if name not in known]:
            raise ValueError(f"{path} has an unknown column {unknown[0]!r}; {_known()}")
        rows = [_row(values, f"{path}, line {reader.line_num}") for values in reader]
    if not rows:
        raise ValueError(f"{path} has no rows below its header")
    return rows


def _row(values: Mapping[str, str | None], where: str) -> PublishedRow:
    if None in values or None in values.values():
        raise ValueError(
            f"{where} has not as many fields as the header; quote texts that contain commas"
        )
    texts = {name: (text or "").strip() for name, text in values.items()}
    for name in _REQUIRED:
        if not texts[name]:
            raise ValueError(f"{where}: {name} is empty; say what the number is and who gave it")
    numbers = {name: _number(name, text, where) for name, text in texts.items()
               if text and name in (*PERCENT, *RANKS, "params_m")}  # fmt: skip
    millions = numbers.pop("params_m", None)
    if not numbers:
        raise ValueError(f"{where} has no measure; {_known()}")
    return PublishedRow(
        **{name: texts.get(name, "") for name in (*_REQUIRED, "venue")},
        parameters=None if millions is None else round(millions * 1e6),
        measures={
            f"test/{RANKS.get(name, name)}": value if name in RANKS else value / 100
            for name, value in numbers.items()
        },
    )


def _number(name: str, text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{where}: {name} must be a number, got {text!r}") from None
    least, most = (0.0, 100.0) if name in PERCENT else (1.0 if name in RANKS else 0.0, float("inf"))
    if not least <= value <= most or value == float("inf"):
        kind = "in percent, from 0 to 100" if name in PERCENT else f"at least {least:g}"
        raise ValueError(f"{where}: {name} must be {kind}, got {text}")
    return value


def _known() -> str:
    optional = ", ".join((*_OPTIONAL, *PERCENT, *RANKS))
    return f"required: {', '.join(_REQUIRED)}; optional: {optional}"
