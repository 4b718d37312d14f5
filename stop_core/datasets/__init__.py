"""Video datasets: which clips there are, which split each is in, and what its class is called."""

from stop_core.datasets.clip import SPLITS, Clip, Split, Task, class_words
from stop_core.datasets.registry import (
    DATASETS,
    Dataset,
    Selection,
    get_dataset,
    select_clips,
)
from stop_core.datasets.validation import carve_validation

__all__ = [
    "DATASETS",
    "SPLITS",
    "Clip",
    "Dataset",
    "Selection",
    "Split",
    "Task",
    "carve_validation",
    "class_words",
    "get_dataset",
    "select_clips",
]
