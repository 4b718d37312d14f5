"""The options of a frame cache: caches with equal options hold the same clips."""

import shlex
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from stop_core.datasets import DATASETS, Clip, Dataset, Selection, Split, Task
from stop_core.decoding import Decoder, Sampling, most_bytes
from stop_core.decoding.sampling import SEGMENTS
from stop_core.storage.atomic import hash_json
from stop_core.storage.documents import Name, Positive, Sha256, build

Crop = Literal["center", "none"]
Compression = Literal["none", "zstd"]
MOST_CLIP_BYTES = 1 << 29
"""Largest size of the frames of one clip."""
_LATER = {"decoder": "auto", "sampling": SEGMENTS}
"""Options that older caches do not have, which were made with the default."""


@dataclass(frozen=True)
class CacheConfig:
    """The options of a cache and the hash of its clip list, independent of the machine."""

    dataset: Name
    fold: Positive
    frames: Positive
    """F, cached frames of a clip; a model can use fewer."""
    size: Positive
    """Short side of a frame, in pixels."""
    limit: Positive | None
    classes: tuple[str, ...]
    """The chosen classes, sorted; empty for all."""
    splits: Annotated[tuple[Split, ...], MinLen(1)]
    class_names: tuple[str, ...]
    """By label; empty for retrieval."""
    clips_hash: Sha256
    """Hash of the whole clip list, which detects edited annotations."""
    task: Task
    crop: Crop
    """"center": square frames. "none": uncropped frames, for random crops in training."""
    compression: Compression
    decoder: Decoder = "auto"
    sampling: Sampling = SEGMENTS

    @classmethod
    def of(cls, dataset: Dataset, selection: Selection, **options: Any) -> "CacheConfig":
        """Builds the options of a cache of `selection`; `options` are those with other values."""
        chosen = ("limit", "classes", "splits", "class_names")
        usual: dict[str, Any] = {"crop": "center", "compression": "none"}
        usual |= {name: getattr(selection, name) for name in chosen}
        clips = hash_json([_listed(clip) for clip in selection.clips])
        return cls(dataset=dataset.name, task=dataset.task, clips_hash=clips, **usual | options)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """F, H, W, 3 of one clip's frames, or of their centre if they are uncropped."""
        return (self.frames, self.size, self.size, 3)

    @property
    def most_clip_bytes(self) -> int:
        """Largest size of one clip's frames; the exact size if frames are square."""
        return most_bytes(self.frames, self.size, self.crop == "center")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON, without later options that have their default."""
        return {k: v for k, v in asdict(self).items() if k not in _LATER or v != _LATER[k]}

    @classmethod
    def from_dict(cls, values: Any, where: object = "the cache's options") -> "CacheConfig":
        """Builds the options from the result of `to_dict`; ValueError if a field is not valid."""
        config = build(cls, values, f"{where}, config")
        if config.most_clip_bytes > MOST_CLIP_BYTES:
            raise ValueError(
                f"{where}: config: {config.frames} frames of size {config.size} make clips of over "
                f"{MOST_CLIP_BYTES >> 20} MiB; lower --frames or --size"
            )
        return config

    def differences(self, other: "CacheConfig") -> list[str]:
        """Returns one phrase per option in which `other` differs from this cache."""
        options = (
            *("dataset", "fold", "frames", "size", "crop", "compression", "decoder"),
            *("sampling", "limit", "classes", "splits"),
        )
        differences = [
            f"{name} is {_show(getattr(self, name))} there and {_show(getattr(other, name))} here"
            for name in options
            if getattr(self, name) != getattr(other, name)
        ]
        if not differences and self != other:
            differences.append(
                "the annotation files list other clips than they did then, or are now read more "
                "strictly (docs/datasets.md)"
            )
        return differences

    def command(self, cache: object) -> str:
        """Returns the command that makes or resumes this cache."""
        parts = [f"stop preprocess --dataset {shlex.quote(self.dataset)}"]
        if self.dataset not in DATASETS or DATASETS[self.dataset].generate is None:
            parts.append("--data-root DIR")
        parts.append(f"--cache {shlex.quote(str(cache))} --fold {self.fold} --frames {self.frames}")
        parts.append(f"--size {self.size}")
        usual = {"crop": "center", "compression": "none", "limit": None, **_LATER}
        for name, default in usual.items():
            if (value := getattr(self, name)) != default:
                parts.append(f"--{name} {shlex.quote(str(value))}")
        if self.classes:
            parts.append(f"--classes {shlex.join(self.classes)}")
        parts.append(f"--splits {shlex.join(self.splits)}")
        return " ".join(parts)


def _listed(clip: Clip) -> tuple[object, ...]:
    """Returns the annotation of a clip, without its path, which depends on the existing files."""
    # Field by field: asdict() takes seconds for 220,000 clips.
    names = (clip.video_id, clip.split, clip.label, clip.class_name)
    return (*names, clip.source, clip.captions)


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value) or "all"
    return "none" if value is None else str(value)
