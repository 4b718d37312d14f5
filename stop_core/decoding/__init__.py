"""Decodes a few evenly spaced frames of a video and resizes them as CLIP does."""

from stop_core.decoding.clip import DecodedClip, DecodeError, Decoder, segment_midpoints
from stop_core.decoding.decode import LONGEST_SIDE, decode_clip
from stop_core.decoding.process import DecodeProcess
from stop_core.decoding.resizing import center_corner, clip_crop

__all__ = [
    "LONGEST_SIDE",
    "DecodeError",
    "DecodeProcess",
    "DecodedClip",
    "Decoder",
    "center_corner",
    "clip_crop",
    "decode_clip",
    "segment_midpoints",
]
