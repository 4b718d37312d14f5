"""Colour and direction, the halves of a class of the motion set, in the predictions of trainings.

    python benchmarks/motion_halves.py outputs/runs/motion-*

Prints a line per training, and per part of a base-to-novel test: the shares of test clips whose
predicted class is right, has the right colour, and has the right direction, in percent. The classes
are numbered by colour, then by direction (left, right).
"""

import argparse
from pathlib import Path

import pandas as pd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("runs", nargs="+", type=Path, help="folders of trainings")
for run in parser.parse_args().runs:
    rows = pd.read_parquet(run / "predictions.parquet").query("split == 'test'")
    for part, some in rows.groupby("part") if "part" in rows else [("", rows)]:
        wanted, found = some["label"], some["predicted"]
        shares = {
            "class": wanted == found,
            "colour": wanted // 2 == found // 2,
            "direction": wanted % 2 == found % 2,
        }
        text = ", ".join(f"{name} {100 * right.mean():.1f}" for name, right in shares.items())
        print(f"{run.name} {part}: {text}".replace(" :", ":"))
