"""Draws docs/figures/findings.png from the tables of docs/findings.md.

python benchmarks/findings_figure.py
"""

import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
# By Okabe and Ito: also apart for colour-blind readers, and in grey.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#e69f00", "#009e73", "#666666"
HALVES = {
    "STOP, every patch prompted (N_s = P)": "STOP, every patch",
    "STOP (N_s = 6)": "STOP, 6 patches",
    "temporal and static prompts": "temporal, static",
    "spatial only": "spatial only",
    "temporal only": "temporal only",
}
RULES = {
    "attention A only": ("CLIP's attention", GREEN, "s"),
    "A and M, learned": ("learned", BLUE, "o"),
    "random, the same in all frames and blocks": ("random, fixed", ORANGE, "^"),
    "random in every frame": ("random in every frame", GREY, "x"),
}


def table(first: str, *others: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns the table with these columns: mean and deviation (or 0) by row and column."""
    wanted = [first, *others]
    lines = (ROOT / "docs/findings.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = next(n for n, row in enumerate(rows) if row[0] == first and {*wanted} <= {*row})
    found = {}
    for row in rows[start + 2 :]:
        if len(row) != len(rows[start]):
            break
        cells = dict(zip(rows[start], row, strict=True))
        found[row[0]] = {name: _numbers(cells[name]) for name in others}
    return found


def _numbers(cell: str) -> tuple[float, float]:
    numbers = re.match(r"([\d.]+)(?: ± ([\d.]+))?", cell)
    return (float(numbers[1]), float(numbers[2] or 0)) if numbers else (float("nan"), 0.0)


def bars(axes: Any, rows: list[str], groups: dict[str, list[tuple[float, float]]]) -> None:
    """Draws two bars for each row, the first one at the top."""
    styles = ((BLUE, ""), (ORANGE, "////"))
    for offset, (name, values), (colour, hatch) in zip(
        (-0.2, 0.2), groups.items(), styles, strict=True
    ):
        means, deviations = zip(*values, strict=True)
        places = [number + offset for number in range(len(rows))]
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": name}
        axes.barh(places, means, 0.38, xerr=deviations, ecolor="black", **style)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))


def main() -> None:
    """Draws the three panels."""
    matplotlib.use("Agg")
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")

    halves = table("row", "colour %", "direction %")
    names = ("colour", "direction")
    groups = {name: [halves[row][f"{name} %"] for row in HALVES] for name in names}
    bars(left, list(HALVES.values()), groups)
    for chance, colour in ((25, BLUE), (50, ORANGE)):
        left.axvline(chance, color=colour, linestyle=":")
    left.set_xlabel("test clips with the correct half, %")

    counts = {2: "2 patches", 6: "6 patches", 12: "12 patches"}
    chosen = table("chosen by", *counts.values())
    for rule, (label, colour, marker) in RULES.items():
        means, deviations = zip(*(chosen[rule][name] for name in counts.values()), strict=True)
        style = {"color": colour, "marker": marker, "label": label, "capsize": 3}
        middle.errorbar(list(counts), means, deviations, **style)
    middle.axhline(12.5, color=GREY, linestyle=":")
    middle.set(xlabel="patches prompted, of 16", ylabel="test top-1, %", ylim=(0, 105))
    middle.set_xticks(list(counts))
    middle.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.45, 1))

    trained = {"N_s = 6": "trained with N_s = 6", "N_s = 16": "trained with N_s = P"}
    left_on = table("prompts on", *trained.values())
    shown = {key: [left_on[row][name] for row in left_on] for key, name in trained.items()}
    bars(right, [row.replace("the patches as", "as") for row in left_on], shown)
    right.axvline(12.5, color=GREY, linestyle=":")
    right.set_xlabel("validation top-1, %")

    figure.savefig(ROOT / "docs/figures/findings.png", dpi=100)


if __name__ == "__main__":
    main()
