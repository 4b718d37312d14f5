"""The datasets by name: how each is read, and its defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stop_core.datasets.activitynet import read_activitynet
from stop_core.datasets.clip import Clip, Task
from stop_core.datasets.csv_file import read_csv
from stop_core.datasets.didemo import read_didemo
from stop_core.datasets.folder import read_folder
from stop_core.datasets.hmdb51 import read_hmdb51
from stop_core.datasets.kinetics import read_kinetics
from stop_core.datasets.lsmdc import read_lsmdc
from stop_core.datasets.msrvtt import read_msrvtt
from stop_core.datasets.msvd import read_msvd
from stop_core.datasets.ssv2 import read_ssv2
from stop_core.datasets.ucf101 import read_ucf101
from stop_core.datasets.vatex import read_vatex, read_vatex_1k5
from stop_core.settings.registry import Registry
from stop_core.storage.documents import shown_text

MOTION_TRAIN = 2560
MOTION_TEST = 768
MOTION_SEED = 0
CAPTIONED_TRAIN = 1920
_LONGEST_MESSAGE = 1000


@dataclass(frozen=True)
class Dataset:
    """The reader of a dataset, and its defaults.

    A dataset with several protocols has a name for each, for example `msrvtt` and `msrvtt-7k`. A
    dataset of another package registers itself (docs/your-own-method.md).
    """

    name: str
    reader: Callable[..., list[Clip]]
    """Lists the clips below a data root; of a fold, its second argument, if there are several."""
    task: Task = "recognition"
    """recognition: a clip has a class. retrieval: a clip has captions."""
    folds: int = 1
    """Folds are numbered from 1."""
    frames: int = 12
    size: int = 224
    """Default edge of a cached frame, in pixels."""
    generate: Callable[[Path], None] | None = None
    """Makes the dataset at a data root that does not exist; None if it must be downloaded."""

    def read(self, root: Path, fold: int) -> list[Clip]:
        """Lists the clips of a fold below a data root.

        Raises OSError if a file cannot be read; ValueError, of one printable line, if it is wrong.
        """
        try:
            return self.reader(root, fold) if self.folds > 1 else self.reader(root)
        except ValueError as problem:
            raise ValueError(shown_text(problem, _LONGEST_MESSAGE)) from problem


def _generate_motion(root: Path, **difficulty: int) -> None:
    from stop_core.datasets.motion.files import write_motion_dataset
    from stop_core.datasets.motion.scenes import Difficulty

    write_motion_dataset(root, MOTION_TRAIN, MOTION_TEST, MOTION_SEED, Difficulty(**difficulty))


def _generate_motion_captions(root: Path) -> None:
    from stop_core.datasets.motion.captions import write_captioned_motion

    write_captioned_motion(root, train=CAPTIONED_TRAIN, seed=MOTION_SEED)


def _read_motion_captions(root: Path) -> list[Clip]:
    from stop_core.datasets.motion.captions import read_captioned_motion

    return read_captioned_motion(root)


# Common for videos of minutes that are described by a paragraph.
_PARAGRAPH_FRAMES = 64

DATASETS: Registry[Dataset] = Registry(Dataset, "stop_video.datasets")
for _dataset in (
    Dataset("hmdb51", read_hmdb51, folds=3),
    Dataset("ucf101", read_ucf101, folds=3),
    Dataset("ssv2", read_ssv2),
    Dataset("ssv2-val", partial(read_ssv2, val_as_test=True)),
    Dataset("kinetics", read_kinetics),
    Dataset("kinetics-val", partial(read_kinetics, val_as_test=True)),
    Dataset("folder", read_folder),
    Dataset("csv", partial(read_csv, task="recognition")),
    Dataset("motion", read_hmdb51, frames=6, size=32, generate=_generate_motion),
    Dataset(
        "motion-crowded",
        read_hmdb51,
        frames=12,
        size=32,
        generate=partial(_generate_motion, statics=8, movers=3, flickers=3, frames=24),
    ),
    Dataset("msrvtt", partial(read_msrvtt, training="9k"), "retrieval"),
    Dataset("msrvtt-7k", partial(read_msrvtt, training="7k"), "retrieval"),
    Dataset("activitynet", read_activitynet, "retrieval", frames=_PARAGRAPH_FRAMES),
    Dataset("didemo", read_didemo, "retrieval", frames=_PARAGRAPH_FRAMES),
    Dataset("vatex", read_vatex, "retrieval"),
    Dataset("vatex-1k5", read_vatex_1k5, "retrieval"),
    Dataset("lsmdc", read_lsmdc, "retrieval"),
    Dataset("msvd", read_msvd, "retrieval"),
    Dataset("csv-captions", partial(read_csv, task="retrieval"), "retrieval"),
    Dataset(
        "motion-captions",
        _read_motion_captions,
        "retrieval",
        frames=6,
        size=32,
        generate=_generate_motion_captions,
    ),
):
    DATASETS.register(_dataset)


def division(dataset: str, fold: int, between: str = ", fold ") -> str:
    """Returns "hmdb51, fold 1"; the name of the dataset only, if it has no other fold."""
    folds = DATASETS[dataset].folds if dataset in DATASETS else fold
    return f"{dataset}{between}{fold}" if folds > 1 else dataset
