"""The data of the chaos scripts that train: a small motion set as a cache."""

from pathlib import Path

from pipelines.preprocessing.make_cache import PreprocessConfig, make_cache
from stop_core.datasets.motion.files import write_motion_dataset


def motion_cache(folder: Path) -> Path:
    """Makes the cache below `folder`, and ends the Ray that it has started for it."""
    import ray  # here: what Ray reads at its import is set when it is started

    write_motion_dataset(folder / "videos", train=64, test=16, seed=1)
    make_cache(
        PreprocessConfig(
            dataset="hmdb51", data_root=folder / "videos", cache=folder / "cache", frames=6,
            size=32, output=folder,
        )
    )  # fmt: skip
    ray.shutdown()
    return folder / "cache"
