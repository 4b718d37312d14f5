"""A local skeleton of a data root on an object store.

The readers of datasets list folders and read annotation files; one request for each of 220,000
clips would take an hour. The skeleton contains every file of the data root with its name, size and
time of change. Annotations have their content; videos are empty and take no disk space.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from stop_core.storage.names import check_path, create
from stop_core.storage.paths import StoragePath

ANNOTATION_ENDINGS = frozenset({".csv", ".json", ".jsonl", ".pkl", ".tsv", ".txt", ".xlsx"})
_CONNECTIONS = 8


@contextmanager
def skeleton_of(data_root: StoragePath) -> Iterator[Path]:
    """Yields a local folder with the annotations of `data_root`: itself if it is local.

    An error whose message names the skeleton is raised with the data root's name instead.

    Raises:
        OSError: if the store cannot be reached.
        ValueError: if a key of the store is not a path below the data root.
    """
    if isinstance(data_root, Path):
        yield data_root
        return
    with tempfile.TemporaryDirectory(prefix="stop-outline-") as folder:
        # A subfolder, so that a data root without any object is missing rather than empty.
        root = Path(folder) / "root"
        annotations = []
        for name, status in data_root.listing():
            if status is None:
                continue
            path = root / check_path(name, data_root)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                create(path)
            except OSError as problem:  # on a disk, a name cannot be both a file and a folder
                raise ValueError(f"{data_root} has {name} and names below it or alike") from problem
            os.truncate(path, status.st_size)
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
            if path.suffix.lower() in ANNOTATION_ENDINGS:
                annotations.append(name)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for _ in pool.map(lambda name: (data_root / name).download(root / name), annotations):
                pass
        try:
            yield root
        except Exception as error:
            error.args = tuple(
                part.replace(str(root), str(data_root)) if isinstance(part, str) else part
                for part in error.args
            )
            raise
