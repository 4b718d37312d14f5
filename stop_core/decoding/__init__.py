"""Decodes a few frames of a video and resizes them as CLIP does."""

from stop_core.decoding.clip import DecodedClip as DecodedClip
from stop_core.decoding.clip import DecodeError as DecodeError
from stop_core.decoding.clip import Decoder as Decoder
from stop_core.decoding.decode import decode_clip as decode_clip
from stop_core.decoding.decode import most_bytes as most_bytes
from stop_core.decoding.process import DecodeProcess as DecodeProcess
from stop_core.decoding.resizing import center_corner as center_corner
from stop_core.decoding.sampling import Sampling as Sampling
from stop_core.decoding.sampling import segment_midpoints as segment_midpoints
