"""Checks that an experiment can be trained on a cache, before anything starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.cache import FrameCache
from stop_core.cache.config import CacheConfig
from stop_core.cache.manifest import Manifest
from stop_core.cache.views import View
from stop_core.datasets import Split, refuse_twins
from stop_core.datasets.list_checks import one_sided
from stop_core.datasets.protocols import base_labels
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.training import TrainingOptions, names_side
from stop_core.storage.paths import StoragePath

if TYPE_CHECKING:  # torch and open_clip take seconds to import; a finished run needs neither
    from stop_core.clip.registry import TowerShape


def check_fit(config: ExperimentConfig, manifest: Manifest, splits: Sequence[Split]) -> None:
    """Raises ValueError, with a remedy, if the cache does not suit the experiment."""
    from stop_core.clip.loading import tower_shape
    from stop_core.model.methods import check_tower

    reads_text = METHODS[config.method].reads_text
    if manifest.task == "retrieval" and not reads_text:
        raise ValueError(
            f"the method {config.method} learns classes, and {manifest.dataset} has captions "
            "instead; choose another method"
        )
    _check_training(config, manifest)
    _check_protocol(config.protocol, manifest, splits)
    if reads_text:
        refuse_twins(manifest.class_names, manifest.class_words)
    check_tower(config)
    if shape := tower_shape(config.tower):
        _check_shape(config, manifest.config, shape)
    for split in splits:
        if not manifest.counts.get(split):
            raise ValueError(
                f"the cache has no clips in its {split} split; preprocess more of the dataset "
                "(a larger --limit, more --classes, --splits with train, val and test)"
            )


def remarks_on(
    config: ExperimentConfig, cache: StoragePath, local_bytes: int | None = None
) -> list[str]:
    """Returns a sentence for each property of the splits of a cache that is probably a mistake.

    The classes of a cache on an object store are not read here; preprocessing has checked them.
    `local_bytes` is the bound on the copies of shards on each machine.
    """
    manifest = Manifest.load(cache)
    if not config.is_trained:
        return []
    remarks = []
    if not manifest.counts.get("val") and not config.protocol.full_training:
        remarks.append("there are no validation clips: the last epoch is tested, and not the best")
    needed = sum(entry.file_bytes for entry in manifest.shards if entry.split == "train")
    if local_bytes is not None and local_bytes < needed and config.training.shuffle == "global":
        remarks.append(
            f"--local-cache-gb {local_bytes / 1e9:.3g} is less than the {needed / 1e9:.3g} GB of "
            "the training split, so a shard is fetched many times in an epoch; with --shuffle "
            "shards, once"
        )
    if isinstance(cache, Path) and config.training.flip:
        captions = FrameCache(cache).split("train").captions
        if sided := sum(any(map(names_side, some)) for some in captions):
            remarks.append(
                f"flip leaves {sided} of {len(captions)} training clips as they are: they have "
                "captions that name left or right"
            )
    if isinstance(cache, Path) and manifest.task == "recognition":
        clips = {split: FrameCache(cache).split(split) for split in manifest.counts}
        remarks += one_sided(
            {
                split: {manifest.class_names[label] for label in some.labels.unique().tolist()}
                for split, some in clips.items()
            }
        )
    return remarks


def _check_training(config: ExperimentConfig, manifest: Manifest) -> None:
    options, has_captions = config.training, manifest.task == "retrieval"
    for name, suits in (
        ("captions", has_captions),
        ("label_smoothing", not has_captions),
        ("mixup", not has_captions),
    ):
        if not suits and getattr(options, name) != getattr(TrainingOptions, name):
            raise ValueError(
                f"{name} is {getattr(options, name)}, but {manifest.dataset} is trained with "
                f"{'captions' if has_captions else 'classes'}; leave {name} out"
            )
    sided = [name for name in manifest.class_words if names_side(name)] if options.flip else []
    if sided:
        raise ValueError(
            f"flip would give clips wrong labels: {len(sided)} of {len(manifest.class_words)} "
            f"classes name a side, for example {sided[0]!r}; leave flip out"
        )


def _check_protocol(protocol: ProtocolConfig, manifest: Manifest, splits: Sequence[Split]) -> None:
    by_class = [name for name in ("shots", "shots_list", "classes")
                if getattr(protocol, name) != getattr(ProtocolConfig(), name)]  # fmt: skip
    if by_class and manifest.task == "retrieval":
        raise ValueError(
            f"{by_class[0]} chooses clips by their classes, and {manifest.dataset} has captions "
            f"instead; leave {by_class[0]} out"
        )
    if protocol.classes == "base":
        base_labels(manifest.class_names, protocol)
    if protocol.full_training and "val" in splits:
        raise ValueError(
            "full_training leaves no validation clips, and the trials of a sweep are compared by "
            "validation; leave it out, and train with the best settings afterwards"
        )
    if protocol.full_training and not manifest.counts.get("val"):
        raise ValueError(
            "full_training adds the validation clips to training, and the cache has none; leave it "
            "out: all training clips are trained on, and the last epoch is tested"
        )


def _check_shape(config: ExperimentConfig, cache: CacheConfig, shape: "TowerShape") -> None:
    size = shape.image_size
    if cache.size < size or (cache.size > size and not config.random_crop):
        crop = ", or give --random-crop" if cache.size > size else ""
        raise ValueError(
            f"the cache holds frames of {cache.size} pixels, and the tower {config.tower} takes "
            f"{size}; run preprocess with --size {size} into another --cache, or choose "
            f"another --tower{crop}"
        )
    if config.random_crop and cache.size == size and cache.crop == "center":
        raise ValueError(
            f"random_crop has nothing to choose from: the cached frames are squares of {size} "
            f"pixels, the size that {config.tower} takes; leave it out, or run preprocess with "
            "a larger --size, or with --crop none, into another --cache"
        )
    View(frames=config.frames).check(cache.frames, cache.size)
    if config.segment_jitter and config.frames == cache.frames:
        raise ValueError(
            f"segment_jitter has nothing to choose from: the cache has {cache.frames} frames per "
            "clip, and all are used; lower --frames, or run preprocess with more --frames into "
            "another --cache"
        )
    if config.method == "stop" and config.stop.n_s > shape.patches:
        raise ValueError(
            f"n_s is {config.stop.n_s}, but a frame has only {shape.patches} patches in "
            f"{config.tower}; lower --n-s"
        )
    if config.method == "stop" and (config.stop.depth or 1) > shape.blocks:
        raise ValueError(
            f"depth is {config.stop.depth}, but {config.tower} has only {shape.blocks} blocks; "
            "lower --depth"
        )
