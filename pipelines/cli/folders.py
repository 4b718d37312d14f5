"""Folders of this installation: the checkout, and the YAML files in `sweeps/`."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

ROOT = _PACKAGE.parent
"""The folder that holds the packages: the root of a checkout, or site-packages."""

CHECKOUT = _PACKAGE.name == "pipelines"
"""Whether this is a checkout, whose entry points are files. A wheel renames the package."""

SWEEPS = (ROOT if CHECKOUT else _PACKAGE) / "sweeps"
"""Search spaces, tables, recipes and published rows. A wheel has them inside its package."""


def command(name: str) -> str:
    """Returns how a command is typed here: `python pipelines/train.py`, or `stop train`."""
    return f"python pipelines/{name}.py" if CHECKOUT else f"stop {name}"


def named_file(given: Path, folder: str = ".") -> Path:
    """Returns `given`, or the file of `sweeps/<folder>` that it names: `motion` is `motion.yaml`.

    An existing path is never taken for a name.
    """
    own = SWEEPS / folder / f"{given}.yaml"
    return own if given.name == str(given) and not given.exists() and own.is_file() else given
