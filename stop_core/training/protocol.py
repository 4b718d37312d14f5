"""The clips of each split under a protocol: few-shot, base-to-novel, full training.

Shapes: N clips, B clips of a batch, T frames, S edge of a square of pixels.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from stop_core.cache import CachedClips, FrameCache, View
from stop_core.cache.fetching import LocalShards
from stop_core.datasets import Split
from stop_core.datasets.protocols import base_labels, draw_shots, find_listed
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.storage.documents import shown

_Clips = dict[Split, "CachedClips | ChosenClips"]


class ChosenClips:
    """The clips at `places`, by part and number, of several splits: by default all of them."""

    def __init__(
        self, parts: Sequence[CachedClips], places: Sequence[tuple[int, int]] | None = None
    ) -> None:
        self._parts = parts
        every = ((n, clip) for n, part in enumerate(parts) for clip in range(len(part)))
        self._places = list(every if places is None else places)
        self.shape = parts[0].shape

    def at(self, clips: Sequence[int]) -> "ChosenClips":
        """Returns the clips of these numbers only."""
        return ChosenClips(self._parts, [self._places[clip] for clip in clips])

    def of(self, labels: Sequence[int]) -> "ChosenClips":
        """Returns the clips of these classes only."""
        wanted = set(labels)
        return self.at([n for n, label in enumerate(self.labels.tolist()) if label in wanted])

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def labels(self) -> Tensor:
        """[N], int64: the labels of the cache."""
        columns = [part.labels.tolist() for part in self._parts]
        return torch.tensor([columns[n][clip] for n, clip in self._places], dtype=torch.int64)

    @property
    def source(self) -> LocalShards | None:
        """Fetches the shards of all parts; None if they are on this machine."""
        return self._parts[0].source

    @cached_property
    def shards(self) -> list[str]:
        """N names: the shard of each clip."""
        return [self._parts[n].shards[clip] for n, clip in self._places]

    @cached_property
    def video_ids(self) -> list[str]:
        """N names."""
        return [self._parts[n].video_ids[clip] for n, clip in self._places]

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """The sentences of each of the N clips."""
        columns = [part.captions for part in self._parts]
        return [columns[n][clip] for n, clip in self._places]

    def read(self, indices: Sequence[int], view: View, out: Tensor | None = None) -> Tensor:
        """Returns the frames of these clips, [B, T, S, S, 3] uint8, in that order."""
        frames, size = view.check(self.shape[0], self.shape[1])
        if out is None:
            out = torch.empty((len(indices), frames, size, size, 3), dtype=torch.uint8)
        for row, index in enumerate(indices):
            part, clip = self._places[index]
            self._parts[part].read([clip], view, out[row : row + 1])
        return out


def protocol_clips(
    cache: FrameCache, config: ExperimentConfig, splits: Sequence[Split]
) -> tuple[_Clips, list[str]]:
    """Returns the clips of those of `splits` that have any, and remarks on the choice.

    Labels are those of the cache. The test split is never changed. Raises ValueError if there is no
    clip to train on, a listed clip is not for training, or base or novel classes have no test clip.
    """
    protocol, names = config.protocol, cache.manifest.class_names
    clips: _Clips = {s: cache.split(s) for s in splits if cache.manifest.counts.get(s)}
    if protocol == ProtocolConfig():
        return clips, []
    remarks = []
    trained: tuple[Split, ...] = ("train", "val")
    own = {split: [cache.split(split)] for split in trained if split in clips}
    if protocol.full_training:
        clips.pop("val", None)
        own["train"] += own.pop("val", [])
    chosen: dict[Split, ChosenClips] = {s: ChosenClips(parts) for s, parts in own.items()}
    if protocol.classes == "base":
        base = base_labels(names, protocol)
        chosen = {split: some.of(base) for split, some in chosen.items()}
        _require_both(clips, base)
    train = chosen["train"]
    if protocol.shots is not None:
        labels = train.labels.tolist()
        drawn, few = draw_shots(train.video_ids, labels, protocol.shots, config.seed)
        if few:
            remarks.append(
                f"shots is {protocol.shots}, and {len(few)} classes have fewer training clips, for "
                f"example {shown(names[few[0]])} with {labels.count(few[0])}: all are trained on"
            )
        train = train.at(drawn)
    elif protocol.shots_list:
        found, absent = find_listed(train.video_ids, protocol.shots_list)
        remarks += _absent(cache, absent)
        train = train.at(found)
    if not len(train):
        raise ValueError(
            "the protocol leaves no clip to train on; choose other base classes or another list"
        )
    if "val" in chosen and not len(chosen["val"]):
        remarks.append("the base classes have no validation clip, so the last epoch is tested")
        del chosen["val"], clips["val"]
    return {**clips, **chosen, "train": train}, remarks


def _require_both(clips: _Clips, base: Sequence[int]) -> None:
    """Refuses a test split without clips of base classes, or without clips of novel ones."""
    if "test" in clips:
        tested = set(clips["test"].labels.tolist())
        for kind, some in (("base", tested & set(base)), ("novel", tested - set(base))):
            if not some:
                raise ValueError(
                    f"the test split has no clip of the {kind} classes, so their accuracy and the "
                    "harmonic mean do not exist; preprocess more of the dataset"
                )


def _absent(cache: FrameCache, absent: Sequence[str]) -> list[str]:
    """Returns a remark on listed videos that are not in the cache; refuses those of other splits.

    A published list is drawn from the whole official training split. A clip of it that is in the
    validation split must not be in both, and a test clip must not be trained on.
    """
    if not absent:
        return []
    remedies: dict[Split, str] = {
        "val": "train on these too, with full_training",
        "test": "give a list of training clips of this fold",
    }
    for split, remedy in remedies.items():
        counts = cache.manifest.counts
        others = cache.split(split).video_ids if counts.get(split) else []
        found, _ = find_listed(others, absent)
        if found:
            raise ValueError(
                f"{len(found)} clips of shots_list are in the {split} split of the cache, for "
                f"example {shown(others[found[0]])}; {remedy}"
            )
    return [
        f"{len(absent)} clips of shots_list are not in the cache, for example {shown(absent[0])}"
    ]
