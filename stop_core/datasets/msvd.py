"""MSVD for retrieval: 1,970 clips from YouTube with about 40 English sentences each.

The usual lists, the captions in one of two forms, and the videos anywhere below the root:

    <root>/train_list.txt, val_list.txt, test_list.txt    one <youtube id>_<start>_<end> per line
    <root>/raw-captions.pkl               {clip: [[word, ...], ...]}, as CLIP4Clip reads it
    <root>/AllVideoDescriptions.txt       or this, the official file: <clip> <sentence>
    <root>/YouTubeClips/<clip>.avi

A test clip keeps all of its sentences: each is a query.
"""

import io
import pickle
import pickletools
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from stop_core.datasets.annotations import read_lines, read_names
from stop_core.datasets.clip import SPLITS, Clip
from stop_core.datasets.data_root import DataRoot
from stop_core.storage.documents import require_file, shown_text

PICKLED, OFFICIAL = "raw-captions.pkl", "AllVideoDescriptions.txt"
# Errors of unpickling a truncated file, or one that is not a pickle.
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, LookupError, ImportError, AttributeError, TypeError),
    *(ValueError, RecursionError, OverflowError, MemoryError),
)
_MOST_PICKLED = 1 << 25  # bytes and characters; the official file has 4 million
# `__builtin__` is how Python 2 wrote it.
_HARMLESS = {
    *(("collections", name) for name in ("defaultdict", "OrderedDict")),
    *((module, "list") for module in ("builtins", "__builtin__")),
}
_LAYOUT = f"train_list.txt, val_list.txt, test_list.txt, {PICKLED} and the videos"


def read_msvd(root: Path) -> list[Clip]:
    """Lists the training, validation and test clips."""
    data = DataRoot(root, _LAYOUT)
    captions = _read_captions(data.find(PICKLED, OFFICIAL))
    for split in SPLITS:
        for where, name in read_names(data.find(f"{split}_list.txt")):
            source, path = re.sub(r"_\d+_\d+$", "", name), f"YouTubeClips/{name}.avi"
            texts = captions.get(name, [])
            data.add_captioned(where, name, split, texts, source=source, default=path)
    return data.finish()


def _read_captions(path: Path) -> dict[str, list[str]]:
    if path.name == PICKLED:
        return _read_pickled(path)
    captions: dict[str, list[str]] = defaultdict(list)
    for where, line in read_lines(path):
        if line.startswith("#"):
            continue
        name, separator, sentence = line.partition(" ")
        if not separator:
            raise ValueError(f"{where}: expected '<clip> <sentence>', found {line!r}")
        captions[name].append(sentence)
    return captions


def _read_pickled(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = defaultdict(list)
    size = 0
    try:
        for name, texts in _unpickled(path).items():
            for words in texts:
                captions[name].append(words if isinstance(words, str) else " ".join(words))
                size += 1 + len(captions[name][-1])
                if size > _MOST_PICKLED:  # one list can be there any number of times
                    raise ValueError(f"it has over {_MOST_PICKLED:,} characters")
    except _BROKEN as error:
        raise ValueError(
            f"{path}: not a pickled dictionary of lists of words ({shown_text(error)}); put "
            f"{OFFICIAL} there instead"
        ) from error
    return captions


def _unpickled(path: Path) -> Any:
    """Unpickles a file, once no instruction in it can ask for more memory than it has bytes."""
    if require_file(path).stat().st_size > _MOST_PICKLED:
        raise ValueError(f"it has over {_MOST_PICKLED:,} bytes")
    content = path.read_bytes()
    for instruction, argument, _ in pickletools.genops(content):
        if "PUT" in instruction.name and argument is not None and argument > len(content):
            raise ValueError(f"it stores a value at the place {argument:,}")
    return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists and texts; anything else in a pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)
