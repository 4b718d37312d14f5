"""Where things lie in a cache directory, and how a file appears there whole or not at all.

<cache>/job.json                    the options that the cache is made with; written first
<cache>/data/train-00003.parquet    a shard: up to 64 clips of one split
<cache>/records/train-00003.json    says that the shard is complete, and from what
<cache>/failures.parquet            the clips that are in no shard, and why
<cache>/manifest.json               says that every shard is complete; written last
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMAT_VERSION = 2
JOB = "job.json"
MANIFEST = "manifest.json"
FAILURES = "failures.parquet"
DATA = "data"
RECORDS = "records"
_STAGING = ".tmp"


def shard_path(cache: Path, name: str) -> Path:
    """Returns where the shard `name` lies."""
    return cache / DATA / f"{name}.parquet"


def record_path(cache: Path, name: str) -> Path:
    """Returns where the record of the shard `name` lies."""
    return cache / RECORDS / f"{name}.json"


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Gives a staging path to write to; on a clean exit the file there becomes `path` at once.

    The staging name begins with a dot, which pyarrow and DuckDB pass over, and is unique, so that
    two processes that make the same file cannot mix their bytes: the later one wins, whole.
    """
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_STAGING}")
    try:
        yield staging
        with staging.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(staging, path)
        _sync_folder(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that appears whole or not at all."""
    with appearing(path) as staging:
        staging.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; ValueError, naming the file, if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and preprocess again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; delete it and preprocess again")
    return value


def is_leftover(path: Path) -> bool:
    """Whether a path is a staging file; one that no process writes to was left by a kill."""
    return path.name.startswith(".") and path.name.endswith(_STAGING)


def remove_leftovers(cache: Path) -> None:
    """Removes the staging files that a killed process left behind in a cache."""
    for folder in (cache, cache / DATA, cache / RECORDS):
        for path in filter(is_leftover, folder.iterdir()):
            path.unlink(missing_ok=True)


def hash_json(value: Any) -> str:
    """Returns the SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    # The new name is on the disk only when its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
