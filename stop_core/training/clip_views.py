"""The frames of a split as a model gets them: cached clips through the view of an experiment.

Training can use other frames and another crop of a clip in every epoch; evaluation always uses the
middle frames of the segments and the centre crop.

Shapes: B clips, T frames per clip for the model, S edge of its square input.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from stop_core.cache import CachedClips, View
from stop_core.settings.experiment import ExperimentConfig


class ShownClips:
    """The clips of a split in the view of evaluation; `in_epoch` returns the view of training.

    Args:
        clips: from the cache.
        config: determines frames and crops.
        size: S, the image size of the model.

    Raises:
        ValueError: if the experiment needs more frames or pixels than are cached.
    """

    def __init__(self, clips: CachedClips, config: ExperimentConfig, size: int) -> None:
        self._clips = clips
        self._config = config
        self._size = size
        self._view = View(frames=config.frames, size=size)
        frames, _ = self._view.check(*clips.shape[:2])
        self.shape = (frames, size, size, 3)
        """Shape of the frames of one clip: T, S, S, 3."""

    def in_epoch(self, epoch: int) -> "ShownClips":
        """Returns the clips in the view of training in one epoch, counted from 0.

        Random choices depend only on seed, epoch and clip, so they are the same after a resume and
        for any batch size and number of processes.
        """
        shown = ShownClips(self._clips, self._config, self._size)
        shown._view = replace(
            self._view,
            jitter=self._config.segment_jitter,
            random_crop=self._config.random_crop,
            seed=self._config.seed,
            epoch=epoch,
        )
        return shown

    @property
    def labels(self) -> Tensor:
        """[N], int64."""
        return self._clips.labels

    @property
    def video_ids(self) -> list[str]:
        """N video ids."""
        return self._clips.video_ids

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """N tuples of captions."""
        return self._clips.captions

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Returns the frames of these clips, uint8 [B, T, S, S, 3]."""
        return self._clips.read(indices, self._view)
