"""A model decodes a video to the same frames as the cache of its training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stop_core.cache import FrameCache
from stop_core.cache.config import Crop
from stop_core.decoding import DecodeError
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.documents import build
from stop_core.trained_model.frames import Preprocessing, preprocessing_of_cache
from stop_core.training.clip_views import ShownClips
from tests.caches import write_cache

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("cached", "size", "crop", "shown", "sampling"),
    [
        (5, 24, "center", None, "rate:4fps"),
        (7, 31, "center", 3, "segments"),
        (7, 31, "none", 3, "dense:2"),
    ],
)
def test_the_decoder_of_a_model_returns_the_frames_of_its_cache(
    write_video: Callable[..., Path],
    tmp_path: Path,
    cached: int,
    size: int,
    crop: Crop,
    shown: int | None,
    sampling: str,
) -> None:
    video = write_video(tmp_path / "videos" / "wave" / "one.avi", frames=17, width=90, height=62)
    (tmp_path / "clips.csv").write_text("path,split,label\nvideos/wave/one.avi,train,wave\n")
    options = {"frames": cached, "size": size, "crop": crop, "sampling": sampling}
    cache = write_cache("csv", tmp_path, tmp_path / "cache", **options)
    clips = FrameCache(cache).split("train")
    wanted = ShownClips(clips, ExperimentConfig(frames=shown), 24).read([0])[0].numpy()
    how = preprocessing_of_cache(FrameCache(cache).manifest.config, (shown, 24), HALF, HALF)
    decoder = how.decoder()
    try:
        found, missing = decoder.decode([video, tmp_path / "none.avi"])
        assert isinstance(missing, DecodeError)
        assert not isinstance(found, DecodeError)
        assert len(found.frame_index) == len(found.frame_time) == len(wanted)
        assert len(set(found.frame_index)) == len(wanted)
    finally:
        decoder.close()
    np.testing.assert_array_equal(found.frames, wanted)
    assert build(Preprocessing, how.to_dict()) == how
    assert ("sampling" in how.to_dict()) == (sampling != "segments")  # old models have none


def test_a_preprocessing_with_too_few_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="5 frames per clip are needed and 3 are cached"):
        Preprocessing(5, 32, HALF, HALF, decoded_frames=3)
    with pytest.raises(ValueError, match="frames and size must be positive, got 0"):
        Preprocessing(0, 32, HALF, HALF)
