"""Video datasets: their clips, with split and class or captions."""

from stop_core.datasets.clip import NO_LABEL as NO_LABEL
from stop_core.datasets.clip import SPLITS as SPLITS
from stop_core.datasets.clip import Clip as Clip
from stop_core.datasets.clip import Split as Split
from stop_core.datasets.clip import Task as Task
from stop_core.datasets.clip import class_words as class_words
from stop_core.datasets.clip import tidied as tidied
from stop_core.datasets.list_checks import refuse_same_words as refuse_same_words
from stop_core.datasets.list_checks import refuse_twins as refuse_twins
from stop_core.datasets.list_checks import remarks as remarks
from stop_core.datasets.registry import DATASETS as DATASETS
from stop_core.datasets.registry import Dataset as Dataset
from stop_core.datasets.selecting import Selection as Selection
from stop_core.datasets.selecting import select_clips as select_clips
from stop_core.datasets.validation_split import carve_validation as carve_validation
from stop_core.datasets.video_files import missing_clips as missing_clips
