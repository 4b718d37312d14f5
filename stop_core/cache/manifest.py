"""The manifest: what a finished cache holds."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import FORMAT_VERSION, JOB, MANIFEST, RECORDS, read_json
from stop_core.datasets import Task, class_words


@dataclass(frozen=True)
class ShardEntry:
    """A shard with at least one row."""

    name: str
    split: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished cache holds, and a hash to tell it by."""

    format_version: int
    config: CacheConfig
    data_hash: str
    """Over the configuration and the bytes of every shard."""
    counts: dict[str, int]
    """Clips by split."""
    failures: int
    """Listed clips that are not in the cache; `failures.parquet` says why."""
    shards: tuple[ShardEntry, ...]

    @property
    def dataset(self) -> str:
        """Name of the dataset, for example "hmdb51"."""
        return self.config.dataset

    @property
    def task(self) -> Task:
        """Whether clips have classes (recognition) or captions (retrieval)."""
        return self.config.task

    @property
    def fold(self) -> int:
        """Which of the dataset's official divisions, from 1."""
        return self.config.fold

    @property
    def frames(self) -> int:
        """T, frames of a clip."""
        return self.config.frames

    @property
    def size(self) -> int:
        """Edge of a frame, in pixels."""
        return self.config.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label, as the dataset writes them."""
        return self.config.class_names

    @property
    def class_words(self) -> tuple[str, ...]:
        """Class names by label, in English words."""
        return tuple(class_words(name) for name in self.class_names)

    @property
    def template(self) -> str:
        """The sentence of a class, `{}` standing for its words."""
        return self.config.template

    @property
    def prompts(self) -> tuple[str, ...]:
        """The sentence of each class, by label."""
        return tuple(self.template.format(words) for words in self.class_words)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, cache: Path) -> "Manifest":
        """Reads the manifest of a finished cache.

        Raises:
            FileNotFoundError: if there is no cache; the message gives the command that makes one.
            ValueError: if the cache is unfinished or cannot be read; the message says what to do.
        """
        if not (cache / MANIFEST).is_file():
            _refuse_unfinished(cache)
        values = read_json(cache / MANIFEST)
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{cache} has cache format {values.get('format_version')}, and this version reads "
                f"{FORMAT_VERSION}: preprocess again into another --cache"
            )
        try:
            config = CacheConfig.from_dict(values.pop("config"))
            shards = tuple(ShardEntry(**shard) for shard in values.pop("shards"))
            counts = {split: values["counts"][split] for split in config.splits}
            return cls(**values | {"config": config, "shards": shards, "counts": counts})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{cache / MANIFEST} cannot be read: preprocess again") from error


def _refuse_unfinished(cache: Path) -> None:
    if not (cache / JOB).is_file():
        raise FileNotFoundError(
            f"there is no frame cache at {cache}: make one with "
            f"`python pipelines/preprocess.py --dataset NAME --data-root DIR --cache {cache}`"
        )
    config = CacheConfig.from_dict(read_json(cache / JOB)["config"])
    done = sum(1 for _ in (cache / RECORDS).glob("[!.]*.json"))
    raise ValueError(
        f"the frame cache at {cache} is unfinished ({done} shards are complete): finish it with "
        f"`{config.command(cache)}`"
    )
