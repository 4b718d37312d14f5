"""A small motion set and its frame cache, decoded without Ray."""

from pathlib import Path

from stop_core.datasets.motion.files import write_motion_dataset
from tests.caches import write_cache


def motion_cache(folder: Path) -> Path:
    """Writes a small motion set and its cache below `folder`; returns the cache."""
    write_motion_dataset(folder / "videos", train=64, test=16, seed=1)
    return write_cache("hmdb51", folder / "videos", folder / "cache", frames=6, size=32)
