"""Folders of this installation: the checkout, and the YAML files in `sweeps/`."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

ROOT = _PACKAGE.parent
"""The folder that holds the packages: the root of a checkout, or site-packages."""

SWEEPS = next(
    folder for folder in (_PACKAGE / "sweeps", ROOT / "sweeps") if (folder / "tables").is_dir()
)
"""Search spaces, tables, recipes and published rows. A wheel has them inside its package."""
