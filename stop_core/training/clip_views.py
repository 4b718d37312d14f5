"""The frames of a split as a model gets them: cached clips through the view of an experiment.

Training can use other frames, another crop and other colours of a clip in every epoch; evaluation
always uses the middle frames of the segments and the centre crop.

Shapes: B examples, T frames per clip for the model, S edge of its square input.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from stop_core.cache import CachedClips, View
from stop_core.cache.fetching import LocalShards
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import names_side
from stop_core.training.augmentation import augment, mix, mixing
from stop_core.training.protocol import ChosenClips


class ShownClips:
    """The clips of a split in the view of evaluation; `in_epoch` returns the view of training.

    If it `is_trained` on and the experiment has `captions` every, its N examples are all pairs of a
    clip and a caption; otherwise they are clips. Raises ValueError if the experiment needs more
    frames or pixels than are cached.
    """

    def __init__(
        self,
        clips: CachedClips | ChosenClips,
        config: ExperimentConfig,
        size: int,
        *,
        is_trained: bool = False,
    ) -> None:
        self._clips = clips
        self._config = config
        self._has_pairs = is_trained and config.training.captions == "every"
        self._view = View(frames=config.frames, size=size)
        self._epoch: int | None = None
        frames, _ = self._view.check(*clips.shape[:2])
        self.shape = (frames, size, size, 3)
        """Shape of the frames of one clip: T, S, S, 3."""

    def in_epoch(self, epoch: int) -> "ShownClips":
        """Returns the clips in the view of training in one epoch, counted from 0.

        Random choices depend only on seed, epoch and example, so they are the same after a resume
        and for any batch size and number of processes.
        """
        shown, config = copy.copy(self), self._config
        shown._epoch = epoch
        random = {"jitter": config.segment_jitter, "random_crop": config.random_crop}
        shown._view = replace(self._view, seed=config.seed, epoch=epoch, **random)
        return shown

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """The clip of each example, and the number of its caption (0 if examples are clips)."""
        if not self._has_pairs:
            return [(clip, 0) for clip in range(len(self._clips))]
        captions = self._clips.captions
        return [(clip, n) for clip, some in enumerate(captions) for n in range(len(some))]

    @property
    def source(self) -> LocalShards | None:
        """Fetches the shards of the clips; None if they are on this machine."""
        return self._clips.source

    @cached_property
    def shards(self) -> list[str]:
        """N names: the shard of each example."""
        shards = self._clips.shards
        return [shards[clip] for clip, _ in self._pairs]

    @cached_property
    def labels(self) -> Tensor:
        """[N], int64."""
        return self._clips.labels[[clip for clip, _ in self._pairs]]

    @cached_property
    def video_ids(self) -> list[str]:
        """N video ids."""
        return [self._clips.video_ids[clip] for clip, _ in self._pairs]

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """N tuples of captions: all of a clip, or the one of a pair."""
        captions = self._clips.captions
        return [captions[c][n : n + 1] for c, n in self._pairs] if self._has_pairs else captions

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, indices: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        """Returns the frames of these examples, uint8 [B, T, S, S, 3]: `out`, if it is given."""
        options = self._config.training
        is_changed = options.flip or options.randaugment or options.mixup
        if self._epoch is None or not (self._has_pairs or is_changed):
            return self._clips.read([self._pairs[index][0] for index in indices], self._view, out)
        frames = torch.empty((len(indices), *self.shape), dtype=torch.uint8) if out is None else out
        for row, index in enumerate(indices):
            frames[row] = self._show(index, self._epoch)
            if options.mixup:
                partner, weight = mixing(index, len(self), self._config, self._epoch)
                frames[row] = mix(frames[row], self._show(partner, self._epoch), weight)
        return frames

    def _show(self, index: int, epoch: int) -> Tensor:
        """Returns the frames of one example as it is trained on in an epoch, before mixing."""
        clip, caption = self._pairs[index]
        # A clip that is shown with each of its captions in an epoch looks different every time.
        showings = len(self._clips.captions[clip]) if self._has_pairs else 1
        showing = epoch * showings + caption
        frames_TSS3 = self._clips.read([clip], replace(self._view, epoch=showing))[0]
        options = self._config.training
        if not (options.flip or options.randaugment):
            return frames_TSS3
        # The mirror image of "from left to right" has another caption.
        may_flip = options.flip and not any(map(names_side, self._clips.captions[clip]))
        seed = self._config.seed, showing, clip
        return augment(frames_TSS3, options, seed, may_flip=may_flip)
