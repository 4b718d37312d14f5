"""What a model sees of a split: the cached clips through the view that an experiment asks for.

Training may show other frames and another square of a clip in every epoch; evaluation always shows
the middles of the same segments, and the centre.

Shapes: B clips, T frames that the model is shown, S edge of the square that it takes.
"""

from collections.abc import Sequence

from torch import Tensor

from stop_core.cache import CachedClips, View
from stop_core.settings.experiment import ExperimentConfig


class ShownClips:
    """The clips of a split as evaluation shows them; `in_epoch` gives them as training does.

    Args:
        clips: of the cache.
        config: says which frames and pixels.
        size: S, that the model takes.

    Raises:
        ValueError: if the experiment asks for more than is cached.
    """

    def __init__(self, clips: CachedClips, config: ExperimentConfig, size: int) -> None:
        self._clips = clips
        self._config = config
        self._size = size
        self._view = View(frames=config.frames, size=size)
        frames, _ = self._view.check(*clips.shape[:2])
        self.shape = (frames, size, size, 3)
        """T, S, S, 3: the frames of one clip."""

    def in_epoch(self, epoch: int) -> "ShownClips":
        """The same clips as training shows them in one epoch, counted from 0.

        What is random follows from seed, epoch and clip alone, so it is the same after a restart,
        and for any batch and any number of processes.
        """
        shown = ShownClips(self._clips, self._config, self._size)
        shown._view = View(
            frames=self._config.frames,
            size=self._size,
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
        """N names."""
        return self._clips.video_ids

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """N tuples of sentences."""
        return self._clips.captions

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Frames of these clips, uint8 [B, T, S, S, 3]."""
        return self._clips.read(indices, self._view)
