"""From a video file to the few frames that a model looks at, the way CLIP would see them."""

from stop_core.decoding.clip import DecodedClip, DecodeError, segment_midpoints
from stop_core.decoding.decode import decode_clip
from stop_core.decoding.process import DecodeProcess
from stop_core.decoding.resizing import clip_crop

__all__ = [
    "DecodeError",
    "DecodeProcess",
    "DecodedClip",
    "clip_crop",
    "decode_clip",
    "segment_midpoints",
]
