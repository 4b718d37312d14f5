"""Makes results without training: predictions on disk, and the measures that follow from them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.training.result import TrainingResult
from pipelines.training.task import PREDICTIONS
from stop_core.settings.experiment import ExperimentConfig

CLASSES = 4


def recognised(
    config: ExperimentConfig,
    right: Sequence[bool],
    folder: Path,
    data_hash: str = "d" * 64,
    first: int = 0,
) -> TrainingResult:
    """Returns a result in which these test clips are right; the class of the others is second.

    Clips are named by number, from `first`.
    """
    labels = np.arange(len(right)) % CLASSES
    ranks = np.where(np.asarray(right), 1, 2)
    rows = pd.DataFrame(
        {
            "split": "test",
            "video_id": [f"clip{number:03}" for number in range(first, first + len(right))],
            "label": labels,
            "predicted": np.where(ranks == 1, labels, (labels + 1) % CLASSES),
            "rank": ranks,
        }
    )
    by_class = (ranks == 1).astype(float)
    metrics = {
        "val/top1": float(by_class.mean()) + 0.01,
        "test/top1": float(by_class.mean()),
        "test/top5": 1.0,
        "test/mean_class": float(np.mean([by_class[labels == c].mean() for c in set(labels)])),
    }
    return _result(config, rows, metrics, folder, data_hash)


def halved(config: ExperimentConfig, right: Sequence[bool], folder: Path) -> TrainingResult:
    """Returns a result with base and novel classes by turns, in which these clips are right."""
    result = recognised(config, right, folder)
    file = Path(result.folder) / PREDICTIONS
    rows = pd.read_parquet(file)
    rows["part"] = np.where(rows["label"] % 2, "novel", "base")
    rows.to_parquet(file, index=False)
    base, novel = (float((rows["rank"] == 1)[rows["part"] == part].mean())
                   for part in ("base", "novel"))  # fmt: skip
    mean = 2 * base * novel / (base + novel) if base and novel else 0.0
    metrics = {"val/base_top1": 0.5, "test/base_top1": base, "test/novel_top1": novel}
    return replace(result, metrics={**result.metrics, **metrics, "test/harmonic_mean": mean})


def retrieved(
    config: ExperimentConfig, ranks: Sequence[int], folder: Path, captions: int = 2
) -> TrainingResult:
    """Returns a result in which each video and all its captions find each other at these ranks."""
    videos = [f"clip{number:03}" for number in range(len(ranks))]
    t2v = pd.DataFrame(
        {"direction": "t2v", "video_id": np.repeat(videos, captions),
         "rank": np.repeat(ranks, captions)}
    )  # fmt: skip
    v2t = pd.DataFrame({"direction": "v2t", "video_id": videos, "rank": ranks})
    rows = pd.concat([t2v, v2t], ignore_index=True).assign(split="test")
    metrics = {"val/t2v_r1": 0.5}
    for direction in ("t2v", "v2t"):
        own = rows[rows["direction"] == direction]["rank"]
        recalls = {f"test/{direction}_r{k}": float((own <= k).mean()) for k in (1, 5, 10)}
        metrics |= {**recalls, f"test/{direction}_mean_rank": float(own.mean())}
    return _result(config, rows, metrics, folder, "d" * 64)


def _result(
    config: ExperimentConfig,
    rows: pd.DataFrame,
    metrics: dict[str, float],
    folder: Path,
    data_hash: str,
) -> TrainingResult:
    own = folder / f"{config.hash}-{config.seed}-{data_hash[:4]}"
    own.mkdir(parents=True, exist_ok=True)
    rows.sample(frac=1, random_state=config.seed).to_parquet(own / PREDICTIONS, index=False)
    return TrainingResult(
        name=own.name,
        method=config.method,
        dataset="motion",
        fold=1,
        seed=config.seed,
        metrics={**metrics, "best_epoch": 1.0, "trainable_parameters": 1234.0},
        config_hash=config.hash,
        data_hash=data_hash,
        git_commit="c" * 40,
        run_id="",
        folder=str(own),
        costs={"step_seconds": 0.05, "memory_megabytes": 900.0} if config.is_trained else {},
    )
