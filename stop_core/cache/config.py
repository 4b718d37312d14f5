"""What a frame cache is made with: two caches with equal configurations hold the same clips."""

import shlex
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from stop_core.datasets import DATASETS, Clip, Dataset, Selection, Split, Task
from stop_core.decoding import LONGEST_SIDE, Decoder
from stop_core.storage.atomic import hash_json
from stop_core.storage.documents import Name, Positive, Sha256, build

Crop = Literal["center", "none"]
Compression = Literal["none", "zstd"]
MOST_CLIP_BYTES = 1 << 29
"""Of the frames of one clip."""


@dataclass(frozen=True)
class CacheConfig:
    """The options of a cache and the clip list that they lead to. Says nothing of any machine."""

    dataset: Name
    fold: Positive
    frames: Positive
    """F, cached frames of a clip; a model may use fewer."""
    size: Positive
    """Short side of a frame, in pixels."""
    limit: Positive | None
    classes: tuple[str, ...]
    """The chosen classes, sorted; empty for all."""
    splits: Annotated[tuple[Split, ...], MinLen(1)]
    class_names: tuple[str, ...]
    """By label; empty for retrieval."""
    clips_hash: Sha256
    """Over the whole list of clips, so that edited annotations are noticed."""
    task: Task = "recognition"
    crop: Crop = "center"
    """"center": frames are square. "none": frames are whole, for random crops later."""
    compression: Compression = "none"
    decoder: Decoder = "auto"

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        selection: Selection,
        *,
        fold: int,
        frames: int,
        size: int,
        crop: Crop = "center",
        compression: Compression = "none",
        decoder: Decoder = "auto",
    ) -> "CacheConfig":
        """Builds the configuration of a cache of `selection`, a part of `dataset`."""
        return cls(
            dataset=dataset.name,
            fold=fold,
            frames=frames,
            size=size,
            limit=selection.limit,
            classes=selection.classes,
            splits=selection.splits,
            class_names=selection.class_names,
            clips_hash=hash_json([_listed(clip) for clip in selection.clips]),
            task=dataset.task,
            crop=crop,
            compression=compression,
            decoder=decoder,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """F, H, W, 3: the shape of one clip's frames; where they are whole, of their centre."""
        return (self.frames, self.size, self.size, 3)

    @property
    def most_clip_bytes(self) -> int:
        """Bytes that one clip's frames can take at most; all clips do where frames are square."""
        longest = 1 if self.crop == "center" else LONGEST_SIDE
        return self.frames * self.size * self.size * longest * 3

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON; the decoder only where it is not the default."""
        # Caches of before there was a choice were made with the default of their time.
        return {k: v for k, v in asdict(self).items() if (k, v) != ("decoder", "auto")}

    @classmethod
    def from_dict(cls, values: Any, where: object = "the cache's options") -> "CacheConfig":
        """Reads back what `to_dict` gave, through JSON or not.

        Raises:
            ValueError: if a field is missing, unknown, of another type or out of its range; the
                message begins with `where`.
        """
        if isinstance(values, dict):
            values = {"decoder": "auto"} | values
            if absent := [field.name for field in fields(cls) if field.name not in values]:
                raise ValueError(f"{where}: config.{absent[0]}: it is missing")
        config = build(cls, values, f"{where}, config")
        if config.most_clip_bytes > MOST_CLIP_BYTES:
            raise ValueError(
                f"{where}: config: {config.frames} frames of size {config.size} make clips of over "
                f"{MOST_CLIP_BYTES >> 20} MiB"
            )
        return config

    def differences(self, other: "CacheConfig") -> list[str]:
        """Returns one phrase for every option in which `other` differs from this cache."""
        options = (
            *("dataset", "fold", "frames", "size", "crop", "compression", "decoder"),
            *("limit", "classes", "splits"),
        )
        found = [
            f"{name} is {_show(getattr(self, name))} there and {_show(getattr(other, name))} here"
            for name in options
            if getattr(self, name) != getattr(other, name)
        ]
        if not found and self != other:
            found.append(
                "the annotation files list other clips than they did then, or are read more "
                "strictly since (docs/datasets.md)"
            )
        return found

    def command(self, cache: object) -> str:
        """Returns the command that makes this cache, or finishes it."""
        parts = [f"python pipelines/preprocess.py --dataset {shlex.quote(self.dataset)}"]
        if self.dataset not in DATASETS or DATASETS[self.dataset].generate is None:
            parts.append("--data-root DIR")
        parts.append(f"--cache {shlex.quote(str(cache))} --fold {self.fold} --frames {self.frames}")
        parts.append(f"--size {self.size}")
        if self.crop != "center":
            parts.append(f"--crop {shlex.quote(self.crop)}")
        if self.compression != "none":
            parts.append(f"--compression {shlex.quote(self.compression)}")
        if self.decoder != "auto":
            parts.append(f"--decoder {shlex.quote(self.decoder)}")
        if self.limit is not None:
            parts.append(f"--limit {self.limit}")
        if self.classes:
            parts.append(f"--classes {shlex.join(self.classes)}")
        parts.append(f"--splits {shlex.join(self.splits)}")
        return " ".join(parts)


def _listed(clip: Clip) -> tuple[object, ...]:
    """What the annotation says of a clip: not its path, which depends on the files that exist."""
    # Field by field: asdict() takes seconds for 220,000 clips.
    return (
        *(clip.video_id, clip.split, clip.label),
        *(clip.class_name, clip.source, clip.captions),
    )


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value) or "all"
    return "none" if value is None else str(value)
