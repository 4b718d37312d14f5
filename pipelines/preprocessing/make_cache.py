"""Makes the frame cache of a dataset: selects the clips, decodes them, records the cache."""

import os
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from stop_core.cache import CacheConfig, CacheJob, Manifest, ShardPlan
from stop_core.cache.config import MOST_CLIP_BYTES, Compression, Crop
from stop_core.cache.files import MOST_CLIPS_PER_SHARD
from stop_core.cache.job import read_failures
from stop_core.cache.shards import Failure
from stop_core.cache.summary import count_reasons
from stop_core.datasets import (
    DATASETS,
    SPLITS,
    Clip,
    Dataset,
    Selection,
    Split,
    missing_clips,
    refuse_same_words,
    remarks,
    select_clips,
)
from stop_core.decoding import Decoder, most_bytes
from stop_core.decoding.sampling import SEGMENTS, is_a_sampling
from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_line
from stop_core.storage.paths import StoragePath, storage_path
from stop_core.storage.private import first_line
from stop_core.storage.skeleton import skeleton_of

from ..cli.console import RunError, add_result, print_result, say, warn
from ..cli.folders import alone_in, default_output
from ..cli.options import OutputFolder, at_least_one, flatten
from ..cli.progress_bar import ProgressBar
from ..cli.video_options import DecodeOptions
from .cache_record import CacheRecord
from .decode_shards import decode_shards

_NAMED = 5  # missing videos that a message names; the report lists all


@dataclass(frozen=True)
class PreprocessConfig:
    """Turn a video dataset into a frame cache (Parquet), ready for training.

    Without options, a small labelled demonstration set is generated and cached. The same command
    resumes after an interruption; a finished cache is not changed.

    Examples:
      stop preprocess --dataset hmdb51 --data-root data/hmdb51 --fold 2 --check
      stop preprocess --dataset hmdb51 --data-root data/hmdb51 --fold 2
      stop preprocess --dataset msrvtt --data-root msrvtt --cache s3://bucket/msrvtt
      stop preprocess --dataset folder --data-root my_videos --frames 8 --size 224
    """

    dataset: Annotated[str, DATASETS] = "motion"
    """Name of the dataset or protocol; folder, csv or csv-captions for your own videos; motion,
    motion-crowded and motion-captions are demonstration sets, generated if absent.
    docs/datasets.md shows the files that each one needs."""
    data_root: str | None = None
    """Folder of the dataset as its archives unpack (default for a demonstration set:
    OUTPUT/data/DATASET)."""
    cache: str | None = None
    """Folder to write the cache to, one for each set of options (default: OUTPUT/cache/DATASET).
    Either folder may be on an object store: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."""
    fold: int = 1
    """Number of the official train/test division, from 1."""
    frames: int | None = None
    """Number of frames per clip (default: the dataset's own, mostly 12)."""
    sampling: str = SEGMENTS
    """segments: the middles of equal segments. rate:1fps: one frame a second, or another number;
    evenly chosen where a clip has more. dense:4: every 4th frame around the middle of the clip;
    dense:8fps: 8 frames a second there."""
    size: int | None = None
    """Edge of a frame in pixels, the model's input size (default: the dataset's, mostly 224)."""
    crop: Crop = "center"
    """center: square frames, as CLIP crops them. none: whole frames with a short side of SIZE
    pixels, for random crops in training."""
    compression: Compression = "none"
    """none: fastest to read. zstd: about two thirds of the disk space."""
    decoder: Decoder = "auto"
    """auto: the fastest decoder that is proven to return the right frames, currently PyAV. pyav:
    PyAV. decord: decord where it is certain to return the same frames, PyAV for the rest."""
    limit: int | None = None
    """Largest number of clips per split, taken evenly from the classes (default: all)."""
    classes: tuple[str, ...] = ()
    """Only these classes (default: all)."""
    splits: tuple[Split, ...] = SPLITS
    """Only these splits."""
    clips_per_shard: int | None = None
    """Clips of a file of the cache, which one task makes (default: 1 to 512, by their number and
    size: docs/cache.md; a resumed cache keeps its own)."""
    check: bool = False
    """Only count the clips, classes and missing videos of each split, and report suspicious lists;
    nothing is decoded or cached."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    output: OutputFolder = field(default_factory=default_output)
    """Folder for the MLflow store, and for data and cache if no other folder is given."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(
                f"--dataset must be one of {', '.join(sorted(DATASETS))}; got {self.dataset!r}"
            )
        if not 1 <= self.fold <= self.entry.folds:
            raise ValueError(
                f"--fold must be from 1 to {self.entry.folds} for {self.dataset}, got {self.fold}"
            )
        at_least_one(frames=self.frames, size=self.size, limit=self.limit)
        if self.clips_per_shard not in (None, *range(1, MOST_CLIPS_PER_SHARD + 1)):
            raise ValueError(
                f"--clips-per-shard must be from 1 to {MOST_CLIPS_PER_SHARD}, got "
                f"{self.clips_per_shard}"
            )
        if not is_a_sampling(self.sampling):
            raise ValueError(
                "--sampling must be segments, or like rate:1fps, dense:4 or dense:7.5fps, got "
                f"{self.sampling!r}"
            )
        if not self.splits:
            raise ValueError(f"--splits needs at least one of {', '.join(SPLITS)}")
        storage_path(self.data_root or ""), storage_path(self.cache or "")  # or a ValueError
        frames, size = self.shape
        if most_bytes(frames, size, self.crop == "center") > MOST_CLIP_BYTES:
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
        """Frames per clip and frame size; the dataset's own by default."""
        return self.frames or self.entry.frames, self.size or self.entry.size

    @property
    def data_path(self) -> StoragePath:
        """The data root as an absolute path: workers have another working directory."""
        if self.data_root is None and self.entry.generate is None:
            raise ValueError(
                f"{self.dataset} needs --data-root, the folder that its archives were unpacked to"
            )
        # Videos are generated on a disk.
        disk = self.output if isinstance(self.output, Path) else default_output()
        return storage_path(self.data_root or disk / "data" / self.dataset).resolve()

    @property
    def cache_path(self) -> StoragePath:
        """The cache folder, relative if the user gave a relative path."""
        return storage_path(self.cache or self.output / "cache" / self.dataset)


def make_cache(config: PreprocessConfig) -> Manifest:
    """Makes or resumes the cache and records it in MLflow; a finished cache stays unchanged."""
    with skeleton_of(config.data_path) as root:
        generate = config.entry.generate
        if generate is not None and not root.exists():
            if root != config.data_path:
                raise RunError(
                    f"there is nothing at {config.data_path}, and {config.dataset} is generated "
                    "only on a local disk: give a local --data-root, or omit it"
                )
            say(f"generating the dataset {config.dataset} below {root}")
            generate(root)
        selection, notes = listed_clips(config, root)
        missing = {clip.video_id for clip in missing_clips(root, selection.clips)}
        if len(missing) == len(selection.clips):
            raise RunError(
                f"none of the {len(selection.clips)} listed clips is there, for example "
                f"{root / selection.clips[0].path}: unpack the videos below {root}"
            )
        return _cache_clips(config, root, selection, notes, missing)


def _cache_clips(
    config: PreprocessConfig,
    root: Path,
    selection: Selection,
    notes: Sequence[str],
    missing: set[str],
) -> Manifest:
    frames, size = config.shape
    names = ("fold", "crop", "compression", "decoder", "sampling")
    options = {name: getattr(config, name) for name in names}
    cache_config = CacheConfig.of(config.entry, selection, frames=frames, size=size, **options)
    count = config.clips_per_shard
    job = CacheJob.open(config.cache_path, cache_config, selection.clips, count)
    record = CacheRecord(config.output, job.cache)
    # A finished cache can be on a disk or in a bucket that can only be read.
    lock: AbstractContextManager[None] = nullcontext()
    here = isinstance(job.cache, Path)
    if not job.is_finished() or (here and os.access(str(job.cache), os.W_OK)):
        lock = alone_in(job.cache)
    with lock:
        if pending := job.pending(root, config.decoding.retry_failed):
            # Before `start` invalidates a finished cache: an unusable store raises here.
            record.begin(cache_config.dataset)
            for note in notes:
                say(f"note: {note}")
            job.start()
            started = time.monotonic()
            _decode(job, pending, config, missing)
            record.note_duration(time.monotonic() - started)
        manifest = job.finish() if pending or not job.is_finished() else Manifest.load(job.cache)
        if not manifest.shards:
            raise RunError(
                f"none of the {len(selection.clips)} clips could be cached "
                f"({failure_counts(read_failures(job.cache))}); check the files below "
                f"{config.data_path}"
            )
        params = {**flatten(config), "frames": frames, "size": size}
        if record.is_pending and (problem := record.send(manifest, params)):
            warn(
                "the cache is complete, but it could not be recorded in MLflow "
                f"({first_line(problem)}); the same command records it later, and decodes nothing"
            )
    return manifest


def _decode(
    job: CacheJob, pending: Sequence[ShardPlan], config: PreprocessConfig, missing: set[str]
) -> None:
    listed = [clip.video_id for plan in pending for clip in plan.clips]
    absent = len(missing.intersection(listed))
    present = len(listed) - absent
    say(f"decoding {present} clips of {config.dataset} into {config.cache_path}")
    if absent:
        say(f"{absent} more are listed, but not below {config.data_path}")
    # Large shards first, so that no core finishes long after the others.
    plans = sorted(pending, key=lambda plan: len(plan.clips), reverse=True)
    shards = decode_shards(job, plans, config.data_path, config.decoding.decode_timeout)
    ProgressBar(present).follow(shards)


def check(config: PreprocessConfig) -> str:
    """Prints the counts of listed and missing clips; RunError if a clip is missing."""
    report = config.output / "check" / f"{config.dataset}-missing.txt"
    with skeleton_of(config.data_path) as root:
        if config.entry.generate is not None and root == config.data_path and not root.exists():
            raise RunError(
                f"there is nothing at {root} to check: {config.dataset} is generated there by the "
                "same command without --check"
            )
        selection, notes = listed_clips(config, root)
        missing = missing_clips(root, selection.clips)
    if missing:
        report.parent.mkdir(parents=True, exist_ok=True)
        with appearing(report) as staging:
            lines = (f"{clip.split}\t{clip.path}\n" for clip in missing)
            staging.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    else:
        report.unlink(missing_ok=True)  # left by an earlier check
    add_result(clips=len(selection.clips), missing_listed_in=report if missing else None)
    print_result(_table(selection, missing))
    for note in notes:
        print_result(textwrap.fill(f"note  {note}", 80, subsequent_indent=" " * 6))
    if missing:
        names = ", ".join(clip.path for clip in missing[:_NAMED])
        raise RunError(
            f"{len(missing)} of {len(selection.clips)} listed clips are missing below "
            f"{config.data_path}: {names}{' and more' if len(missing) > _NAMED else ''}; all of "
            f"them are listed in {report}"
        )
    return f"complete: all {len(selection.clips):,} clips are below {config.data_path}"


def listed_clips(config: PreprocessConfig, root: Path) -> tuple[Selection, list[str]]:
    """Reads the annotation below `root`; returns the chosen clips, and remarks."""
    clips = config.entry.read(root, config.fold)
    selection = select_clips(clips, config.splits, config.classes, config.limit)
    if not selection.clips:
        raise RunError(f"the annotation below {root} lists no clip of the chosen splits")
    refuse_same_words(selection.class_names)
    return selection, remarks(config.dataset, config.fold, clips, selection)


def failure_counts(failures: Sequence[Failure]) -> str:
    """Returns "REASON: COUNT, ..." of the failures, the most frequent first."""
    counts = count_reasons(failures).most_common()
    return ", ".join(f"{in_line(reason)}: {count}" for reason, count in counts)


def _table(selection: Selection, missing: Sequence[Clip]) -> str:
    listed = Counter(clip.split for clip in selection.clips)
    gone = Counter(clip.split for clip in missing)
    unit = "classes" if selection.class_names else "captions"
    lines = [f"{'split':<6}{'clips':>10}{'missing':>10}{unit:>10}"]
    for split in selection.splits:
        clips = [clip for clip in selection.clips if clip.split == split]
        classes = len({clip.class_name for clip in clips})
        count = classes if selection.class_names else sum(len(clip.captions) for clip in clips)
        lines.append(f"{split:<6}{listed[split]:>10,}{gone[split]:>10,}{count:>10,}")
    return "\n".join(lines)
