"""Video datasets: their clips, with split and class or captions."""

from stop_core.datasets.clip import NO_LABEL, SPLITS, Clip, Split, Task, class_words, tidied
from stop_core.datasets.list_checks import refuse_same_words, refuse_twins, remarks
from stop_core.datasets.registry import DATASETS, Dataset
from stop_core.datasets.selecting import Selection, select_clips
from stop_core.datasets.validation_split import carve_validation
from stop_core.datasets.video_files import missing_clips

__all__ = [
    "DATASETS",
    "NO_LABEL",
    "SPLITS",
    "Clip",
    "Dataset",
    "Selection",
    "Split",
    "Task",
    "carve_validation",
    "class_words",
    "missing_clips",
    "refuse_same_words",
    "refuse_twins",
    "remarks",
    "select_clips",
    "tidied",
]
