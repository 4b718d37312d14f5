"""The frames of both decoders are those of another build of FFmpeg, which decodes all of a file."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stop_core.decoding import DecodeError, Decoder, decode_clip
from tests.stop_core.decoding.grid import (
    CODECS,
    CONTAINERS,
    STRUCTURES,
    Row,
    commands,
    decoded,
    make,
    rows,
)

# decord serves plain H.264 only, of which the whole grid has few rows.
PLAIN = {
    "codec": ["h264", "h264-b", "h264-intra", "h264-long", "h264-slices", "h264-cropped"],
    "container": ["mp4", "mov", "unedited", "faststart", "3gp", "mkv"],
    "matrix": ["up"],
    "colour": ["bt601", "full709"],
    "size": ["96x64", "98x66"],
}
ROWS = rows(begin=rows(**PLAIN))


def difference(
    row: Row, path: Path, decoder: Decoder, pictures: NDArray[np.uint8], times: NDArray[np.float64]
) -> str:
    """Returns how the frames of a decoder differ from `pictures`, shown at `times`; "" if not."""
    # At the seam of two recordings FFmpeg moves times, so that they no longer increase.
    is_timed = CONTAINERS[row.container].has_times and CODECS[row.codec].has_times
    is_timed &= bool((np.diff(times) > 0).all())
    # The short side as it is: nothing is resized or cropped.
    size = min(pictures.shape[1:3])
    for frames in (8, len(pictures) or 1, 1):
        try:
            clip = decode_clip(path, frames, size, crop=False, decoder=decoder)
        except DecodeError as error:
            expected = STRUCTURES[row.structure].refusal
            is_expected = bool(expected) and re.search(expected, str(error)) is not None
            return "" if is_expected or not len(pictures) else f"refused: {error}"
        if decoder == "decord" and clip.decoder.startswith("PyAV"):
            return ""  # PyAV serves files that decord does not, and was compared already
        if clip.num_frames != len(pictures):
            return f"{clip.num_frames} frames, not {len(pictures)}"
        right = pictures[clip.frame_index]
        if clip.frames.shape != right.shape:
            return f"shape {clip.frames.shape}, not {right.shape}"
        if off := np.abs(clip.frames - right.astype(int)).max():
            return f"pixels off by up to {off} by {clip.decoder}"
        if is_timed:
            late = np.abs(clip.frame_time - times[clip.frame_index]).max()
            if not late < 2e-3:  # Matroska and FLV count milliseconds
                return f"times off by up to {late} s by {clip.decoder}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_frames_are_those_of_another_ffmpeg(tmp_path: Path, codec: str) -> None:
    """To the last bit, and at the same times; or a video that lacks something is refused."""
    differences = []
    for row in (row for row in ROWS if row.codec == codec):
        path = make(row, tmp_path)
        reference = decoded(path)
        decoders: tuple[Decoder, ...] = ("pyav", "decord")
        for decoder in decoders:
            if found := difference(row, path, decoder, *reference):
                made = [f"\nffmpeg {shlex.join(step)}" for step in commands(row, tmp_path)[1]]
                differences.append(f"{row}, {decoder}: {found}{''.join(made)}")
    assert not differences, "\n".join(differences)
