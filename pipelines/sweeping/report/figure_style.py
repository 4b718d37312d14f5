"""The style that the figures of a sweep share: size of a printed page, colours, and labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_figure

REPORT_FIGURES = "figures"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"  # distinct to the colour-blind, and in print
PAGE = 7.0  # inches across the two columns of a paper
_STYLE: dict[Any, Any] = {  # matplotlib types its keys as a literal of some 300 names
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
_SYMBOLS = {"n_s": "$N_s$", "alpha": r"$\alpha$", "beta": r"$\beta$", "eta": r"$\eta$"}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yields a figure of this size in inches, with the shared style for the body of the `with`."""
    with rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def show_figure(figure: Figure, folder: Path, name: str) -> str:
    """Writes `folder`/figures/`name`.png atomically; returns the line of Markdown that shows it."""
    path = folder / REPORT_FIGURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        figure.savefig(staging, format="png", dpi=200)
    return f"![{name}]({REPORT_FIGURES}/{name}.png)"


def label(name: str) -> str:
    """Returns the label of a setting or a measure, with the symbols of the paper."""
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    split, _, measure = name.rpartition("/")
    words = in_figure(measure).replace("_", " ")
    return f"{'validation ' if split == 'val' else ''}{words}"


def value_text(value: Any) -> str:
    """Returns the tick label of a value; None blocks or frames means all of them."""
    return "all" if value is None else in_figure(str(value))
