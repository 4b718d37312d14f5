"""What all figures of a sweep have in common: a printed page's size, its colours and its words."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_figure

REPORT_FIGURES = "figures"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"  # told apart by the colour-blind, and in print
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
PAGE = 7.0  # inches across the two columns of a paper
_SYMBOLS = {"n_s": "$N_s$", "alpha": r"$\alpha$", "beta": r"$\beta$", "eta": r"$\eta$"}


def show_figure(figure: Figure, folder: Path, name: str) -> str:
    """Writes a figure of a report in `folder`, whole or not at all; returns the line that shows it.

    It is the PNG `folder`/figures/`name`.png.
    """
    path = folder / REPORT_FIGURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        figure.savefig(staging, format="png", dpi=200)
    return f"![{name}]({REPORT_FIGURES}/{name}.png)"


def label(name: str) -> str:
    """A setting or a measure as a reader of the paper knows it."""
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    split, _, measure = name.rpartition("/")
    words = in_figure(measure).replace("_", " ")
    return f"{'validation ' if split == 'val' else ''}{words}"


def value_text(value: Any) -> str:
    """A value of a setting beside an axis; an empty number of blocks or frames means all."""
    return "all" if value is None else in_figure(str(value))
