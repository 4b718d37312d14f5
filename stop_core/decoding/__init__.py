"""Decodes a few frames of a video and resizes them as CLIP does."""

from stop_core.decoding.clip import DecodedClip, DecodeError, Decoder
from stop_core.decoding.decode import decode_clip, most_bytes
from stop_core.decoding.process import DecodeProcess
from stop_core.decoding.resizing import center_corner
from stop_core.decoding.sampling import Sampling, segment_midpoints

__all__ = [
    "DecodeError",
    "DecodeProcess",
    "DecodedClip",
    "Decoder",
    "Sampling",
    "center_corner",
    "decode_clip",
    "most_bytes",
    "segment_midpoints",
]
