"""Makes the frame cache of a dataset: selects the clips, decodes them, records the cache."""

import os
import textwrap
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stop_core.cache import CacheConfig, CacheJob, Manifest, ShardPlan
from stop_core.cache.config import MOST_CLIP_BYTES, Compression, Crop
from stop_core.cache.job import read_failures
from stop_core.cache.shards import Failure
from stop_core.cache.summary import count_reasons
from stop_core.datasets import (
    DATASETS,
    SPLITS,
    Dataset,
    Selection,
    Split,
    missing_clips,
    refuse_same_words,
    remarks,
    select_clips,
)
from stop_core.decoding import LONGEST_SIDE, Decoder
from stop_core.decoding.process import DECODE_TIMEOUT
from stop_core.storage.escaping import in_line
from stop_core.storage.paths import StoragePath, storage_path
from stop_core.storage.private import first_line
from stop_core.storage.skeleton import skeleton_of

from ..cli.console import print_result, say
from ..cli.errors import RunError
from ..cli.folder_lock import alone_in
from ..cli.output import default_output
from ..cli.progress_bar import ProgressBar
from .cache_record import CacheRecord
from .decode_shards import decode_shards
from .missing_files import check_files

_MOST_TIMEOUT = 86400


@dataclass(frozen=True)
class PreprocessConfig:
    """Turn a video dataset into a frame cache (Parquet), ready for training.

    Without options, a small labelled demonstration set is generated and cached. The same command
    goes on after an interruption; a finished cache is left as it is.
    """

    dataset: str = "motion"
    """Which dataset, or protocol of it: hmdb51, ucf101, ssv2, ssv2-val, kinetics, kinetics-val,
    msrvtt, msrvtt-7k, activitynet, didemo, vatex, vatex-1k5, lsmdc, msvd; folder, csv or
    csv-captions for your own; or motion, motion-crowded or motion-captions, the demonstration sets,
    which are generated where absent. docs/datasets.md shows what each reads."""
    data_root: str | None = None
    """Folder of the dataset as its archives unpack (default for a demonstration set:
    OUTPUT/data/DATASET)."""
    cache: str | None = None
    """Folder to write the cache to, one for each set of options (default: OUTPUT/cache/DATASET).
    Either folder may be on an object store: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."""
    fold: int = 1
    """Which of the dataset's official train/test divisions, from 1."""
    frames: int | None = None
    """Frames of each clip, spread evenly over it (default: the dataset's own, mostly 12)."""
    size: int | None = None
    """Edge of a frame in pixels, as the model takes it (default: the dataset's own, mostly 224)."""
    crop: Crop = "center"
    """center: square frames, as CLIP crops them. none: whole frames, whose short side is SIZE, for
    random crops in training."""
    compression: Compression = "none"
    """none: fastest to read. zstd: about two thirds of the disk space."""
    decoder: Decoder = "auto"
    """auto: the fastest decoder that is proven to give the right frames, which is PyAV today. pyav:
    PyAV. decord: decord where it is sure to find the same frames, PyAV for the rest."""
    limit: int | None = None
    """At most so many clips of each split, taken evenly from the classes (default: all)."""
    classes: tuple[str, ...] = ()
    """Only these classes (default: all)."""
    splits: tuple[Split, ...] = SPLITS
    """Only these splits."""
    check: bool = False
    """Only count the clips, classes and missing videos of each split, and say what looks wrong in
    the lists; nothing is decoded or cached."""
    retry_failed: bool = False
    """Decode the clips in failures.parquet once more, and only those."""
    decode_timeout: float = DECODE_TIMEOUT
    """Seconds that one clip may take to decode; it then counts as failed."""
    output: Path = field(default_factory=default_output)
    """Folder for whatever has no folder of its own, and for the MLflow store."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(
                f"--dataset must be one of {', '.join(sorted(DATASETS))}; got {self.dataset!r}"
            )
        if self.data_root is None and self.entry.generate is None:
            raise ValueError(
                f"--data-root is needed for {self.dataset}: the folder that its archives were "
                "unpacked to"
            )
        if not 1 <= self.fold <= self.entry.folds:
            raise ValueError(
                f"--fold must be from 1 to {self.entry.folds} for {self.dataset}, got {self.fold}"
            )
        for option in ("frames", "size", "limit"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"--{option} must be at least 1, got {value}")
        if not 0 < self.decode_timeout <= _MOST_TIMEOUT:
            raise ValueError(
                f"--decode-timeout must be above 0 and at most {_MOST_TIMEOUT} seconds, a day; got "
                f"{self.decode_timeout:g}"
            )
        if not self.splits:
            raise ValueError(f"--splits needs at least one of {', '.join(SPLITS)}")
        storage_path(self.data_root or ""), storage_path(self.cache or "")  # or a ValueError
        frames, size = self.shape
        longest = 1 if self.crop == "center" else LONGEST_SIDE
        if frames * size * size * longest * 3 > MOST_CLIP_BYTES:
            raise ValueError(
                f"--frames {frames} with --size {size} makes clips of over "
                f"{MOST_CLIP_BYTES >> 20} MiB: choose smaller ones"
            )

    @property
    def entry(self) -> Dataset:
        """The dataset's entry in the registry."""
        return DATASETS[self.dataset]

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and size, the dataset's own where the user gave none."""
        return self.frames or self.entry.frames, self.size or self.entry.size

    @property
    def data_path(self) -> StoragePath:
        """The data root; absolute, because workers have another working directory."""
        return storage_path(self.data_root or self.output / "data" / self.dataset).resolve()

    @property
    def cache_path(self) -> StoragePath:
        """The cache folder, as the user would write it."""
        return storage_path(self.cache or self.output / "cache" / self.dataset)


def make_cache(config: PreprocessConfig) -> Manifest:
    """Makes the cache, or finishes it, or finds it finished; returns what it holds.

    Raises:
        ValueError, OSError, RunError: for what a user can mend, in one sentence.
    """
    with skeleton_of(config.data_path) as root:
        return _make_cache(config, root)


def _make_cache(config: PreprocessConfig, root: Path) -> Manifest:
    """The same, with the data root outlined at `root`."""
    selection, found = _find_clips(config, root)
    missing = _missing(selection, root)
    frames, size = config.shape
    cache_config = CacheConfig.of(
        config.entry,
        selection,
        fold=config.fold,
        frames=frames,
        size=size,
        crop=config.crop,
        compression=config.compression,
        decoder=config.decoder,
    )
    job = CacheJob.open(config.cache_path, cache_config, selection.clips)
    record = CacheRecord(config.output, job.cache)
    with _alone(job.cache):
        if pending := job.pending(root, config.retry_failed):
            # A store that cannot be used ends this before the finished cache is given up.
            record.begin(cache_config.dataset)
            for remark in found:
                say(f"note: {remark}")
            job.start()
            started = time.monotonic()
            _decode(job, pending, config, missing)
            record.made(time.monotonic() - started)
        manifest = job.finish() if pending or not job.is_finished() else Manifest.load(job.cache)
        if not manifest.shards:
            raise RunError(
                f"none of the {len(selection.clips)} clips could be cached "
                f"({_reasons(read_failures(job.cache))}); check the files below {config.data_path}"
            )
        if record.is_owed:
            _record(record, config, manifest)
    return manifest


def _alone(cache: StoragePath) -> AbstractContextManager[None]:
    """Keeps other commands from the cache, where there are locks and this one may write."""
    if isinstance(cache, Path) and os.access(cache, os.W_OK):
        return alone_in(cache)
    return nullcontext()


def _record(record: CacheRecord, config: PreprocessConfig, manifest: Manifest) -> None:
    """Tells MLflow of the cache that was made."""
    frames, size = config.shape
    if problem := record.tell(manifest, {**asdict(config), "frames": frames, "size": size}):
        say(
            "the cache is complete, but it could not be recorded in MLflow "
            f"({first_line(problem)}); the same command records it later, and decodes nothing"
        )


def _decode(
    job: CacheJob, pending: Sequence[ShardPlan], config: PreprocessConfig, missing: set[str]
) -> None:
    """Makes the pending shards, telling how far it has come."""
    listed = [clip.video_id for plan in pending for clip in plan.clips]
    there = len(listed) - len(missing.intersection(listed))
    say(f"decoding {there} clips of {config.dataset} into {config.cache_path}")
    if there < len(listed):
        say(f"{len(listed) - there} more are listed, but not below {config.data_path}")
    # Large shards first, so that no core is left with one at the end.
    plans = sorted(pending, key=lambda plan: len(plan.clips), reverse=True)
    shards = decode_shards(job, plans, config.data_path, config.decode_timeout)
    ProgressBar(there).follow(shards)


def check(config: PreprocessConfig) -> str:
    """Prints what is listed and what is missing; returns a last line, or RunError if one is."""
    report = config.output / "check" / f"{config.dataset}-missing.txt"
    with skeleton_of(config.data_path) as root:
        if config.entry.generate is not None and root == config.data_path and not root.exists():
            raise RunError(
                f"there is nothing at {root} to check: {config.dataset} is generated there by the "
                "same command without --check"
            )
        selection, found = _listed_clips(config, root)
        table, problem = check_files(selection, root, report)
    print_result(table)
    for remark in found:
        print_result(textwrap.fill(f"note  {remark}", 80, subsequent_indent=" " * 6))
    if problem:
        raise RunError(problem.replace(str(root), str(config.data_path)))
    return f"complete: all {len(selection.clips):,} clips are below {config.data_path}"


def _listed_clips(config: PreprocessConfig, root: Path) -> tuple[Selection, list[str]]:
    """Reads the annotation below `root`; returns what the user chose of it, and remarks on it."""
    clips = config.entry.read(root, config.fold)
    selection = select_clips(clips, config.splits, config.classes, config.limit)
    if not selection.clips:
        raise RunError(f"the annotation below {root} lists no clip of the chosen splits")
    refuse_same_words(selection.class_names)
    return selection, remarks(config.dataset, config.fold, clips, selection)


def _find_clips(config: PreprocessConfig, root: Path) -> tuple[Selection, list[str]]:
    """As `_listed_clips`, generating the dataset first where that is how it comes to be."""
    entry = config.entry
    if entry.generate is not None and not root.exists():
        if root != config.data_path:
            raise RunError(
                f"there is nothing at {config.data_path}, and {entry.name} is generated on a local "
                "disk only: give a local --data-root, or none"
            )
        say(f"generating the dataset {entry.name} below {root}")
        entry.generate(root)
    return _listed_clips(config, root)


def _missing(selection: Selection, root: Path) -> set[str]:
    """Returns the ids of the listed clips that are not there; RunError if none is there."""
    missing = {clip.video_id for clip in missing_clips(root, selection.clips)}
    if len(missing) == len(selection.clips):
        raise RunError(
            f"none of the {len(selection.clips)} listed clips is there, for example "
            f"{root / selection.clips[0].path}: unpack the videos below {root}"
        )
    return missing


def _reasons(failures: Sequence[Failure]) -> str:
    """Counts the failures by their reason, the most frequent first."""
    counts = count_reasons(failures).most_common()
    return ", ".join(f"{in_line(reason)}: {count}" for reason, count in counts)
