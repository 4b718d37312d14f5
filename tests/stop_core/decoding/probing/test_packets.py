"""Facts about pictures in their packets, without decoding."""

from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest

from stop_core.decoding import Decoder
from stop_core.decoding.probing.packets import keys_in_order, pictures_in
from stop_core.decoding.with_pyav import PyavVideo
from tests.scheduling import same_scheduling
from tests.stop_core.decoding.videos import (
    FRAMES,
    all_frames,
    assert_right,
    packets_of,
    write_video,
)


def test_a_key_frame_is_in_order_if_nothing_stored_crosses_it() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        shown = random.permutation(8).tolist()
        keys = sorted(random.choice(8, 3, replace=False).tolist())
        in_order = [
            key
            for key in keys
            if all((i < key) == (shown[i] < shown[key]) for i in range(8) if i != key)
        ]
        assert keys_in_order(shown, keys) == in_order


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="no encoder libsvtav1 here")
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("splitter", [None, "av1_frame_split"])
def test_hidden_pictures_of_av1_are_no_frames(
    tmp_path: Path, splitter: str | None, suffix: str
) -> None:
    """Encoders store one in a packet with the next that is shown; others split the two."""
    path = tmp_path / f"clip.{suffix}"
    with same_scheduling():
        write_video(path, "libsvtav1", {"g": "20"}, splitter=splitter)
    packets, video = packets_of(path), PyavVideo(path)
    assert len(all_frames(path)) == video.num_frames == FRAMES
    assert video.packets.are_pictures == (len(packets) == FRAMES) == (splitter is None)
    for decoder in get_args(Decoder):
        for frames in (1, 3, 7, FRAMES):
            assert_right(path, frames, decoder)


def test_a_superframe_of_vp9_shows_what_its_frames_show() -> None:
    """The frames of a superframe are listed at its end, lengths in little-endian."""
    hidden, shown, existing = b"\x84rest", b"\x86", b"\x88"  # marker 10, of profile 0
    for frames, count in (
        ([shown], 1),
        ([hidden], 0),
        ([existing], 1),
        ([hidden, shown], 1),
        ([hidden, hidden, existing], 1),
        ([shown, shown], 2),
        ([b"\xb1"], 1),  # in profile 3 the bits are one position lower
        ([b"\xb2"], 0),
    ):
        packet = b"".join(frames)
        if len(frames) > 1:
            mark = bytes([0xC0 | 1 << 3 | len(frames) - 1])
            lengths = b"".join(len(frame).to_bytes(2, "little") for frame in frames)
            packet += mark + lengths + mark
        assert pictures_in("vp9", memoryview(packet)) == count
