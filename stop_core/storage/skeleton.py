"""A local skeleton of a data root on an object store.

The readers of datasets list folders and read annotation files; one request for each of 220,000
clips would take an hour. The skeleton contains every file of the data root with its name, size and
time of change. Annotations have their content; videos are empty and take no disk space.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

from stop_core.storage.names import check_path, create
from stop_core.storage.paths import RemotePath, RemoteStatus, StoragePath

ANNOTATION_ENDINGS = frozenset({".csv", ".json", ".jsonl", ".pkl", ".tsv", ".txt", ".xlsx"})
_CONNECTIONS = 16
_MOST_FOLDERS = 1000  # a page of a listing; more are listed together


@contextmanager
def skeleton_of(data_root: StoragePath) -> Iterator[Path]:
    """Yields a local folder with the annotations of `data_root`: itself if it is local.

    An error whose message names the skeleton is raised with the data root's name instead. Raises
    ValueError if a key of the store is not a path below the data root.
    """
    if isinstance(data_root, Path):
        yield data_root
        return
    with tempfile.TemporaryDirectory(prefix="stop-outline-") as folder:
        # A subfolder, so that a data root without any object is missing rather than empty.
        root = Path(folder) / "root"
        annotations, made = [], set()
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for name, status in _objects(data_root, pool):
                path = root / check_path(name, data_root)
                try:
                    if path.parent not in made:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        made.add(path.parent)
                    create(path)
                except OSError as problem:  # on a disk, a name cannot be both a file and a folder
                    raise ValueError(
                        f"{data_root} has {name} and names below it or alike"
                    ) from problem
                os.truncate(path, status.st_size)
                os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
                if path.suffix.lower() in ANNOTATION_ENDINGS:
                    annotations.append(name)
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


def _objects(data_root: RemotePath, pool: Executor) -> Iterator[tuple[str, RemoteStatus]]:
    folders = [""]  # listed several at once, since a store returns the pages of a listing in turn
    while folders:
        # For GCS, pyarrow finds the folders of a folder only if an object marks them.
        whole = data_root.scheme != "s3" or len(folders) >= _CONNECTIONS
        listings = pool.map(_listing, repeat(data_root), folders, repeat(whole))
        folders = []
        for name, status in chain.from_iterable(listings):
            if status is None:
                folders.append(name)
            else:
                yield name, status


def _listing(
    data_root: RemotePath, folder: str, whole: bool
) -> list[tuple[str, RemoteStatus | None]]:
    """Lists a folder, whose folders have no status, or, if `whole`, all objects below it."""
    place, start = (data_root / folder, f"{folder}/") if folder else (data_root, "")
    found = [(start + name, s) for name, s in place.listing(whole) if s is not None or not whole]
    if sum(status is None for _, status in found) > _MOST_FOLDERS:
        return _listing(data_root, folder, True)
    return found
