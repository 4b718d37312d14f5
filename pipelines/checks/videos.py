"""Checks of the video decoders, of open_clip, and of a frame cache."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .finding import Finding, failure, ok, one_line, warn_if, warning

# 64 x 64 pixels, H.264; frame i is grey, 16 + 19 i.
PROBE = Path(__file__).with_name("probe.mp4")
_FRAMES, _FIRST, _STEP, _NEAR = 12, 16, 19, 3
_CODECS = ("h264", "hevc", "mpeg4", "vp9", "av1")


def check_decoders() -> Iterator[Finding]:
    """Checks that decord, PyAV and the decoding process return the right frames of a video."""
    found = {"decord": _check_decord(), "PyAV": _check_pyav()}
    works = [name for name, finding in found.items() if finding.status == "ok"]
    for name, finding in found.items():
        if finding.status != "ok" and works:
            advice = f"{finding.advice}; until then {works[0]} decodes the videos that it can"
            yield warning(name, finding.found, advice)
        else:
            yield finding
    if works:
        yield _check_process()


def _check_decord() -> Finding:
    from stop_core.decoding.with_decord import DecordVideo
    from stop_core.decoding.with_pyav import PyavVideo

    advice = "pip install decord (there are wheels for x86-64 only)"
    return _check_decoder("decord", lambda path: DecordVideo(PyavVideo(path)), advice)


def _check_pyav() -> Finding:
    from av.codec import Codec

    from stop_core.decoding.with_pyav import PyavVideo

    finding = _check_decoder("PyAV", PyavVideo, "pip install --force-reinstall av")
    known = []
    for name in _CODECS:
        try:
            known.append(Codec(name, "r").name)
        except ValueError:  # there is no such decoder
            continue
    if finding.status == "ok":
        return ok("PyAV", f"{finding.found}; codecs: {', '.join(known)}")
    return finding


def _check_decoder(name: str, video: Callable[[Path], Any], advice: str) -> Finding:
    try:
        opened = video(PROBE)
        index = np.arange(_FRAMES, dtype=np.int32)
        parts = [pictures for _, pictures in opened.pictures(index)]
    except (ImportError, OSError, ValueError, RuntimeError) as problem:
        return failure(name, one_line(problem), advice)
    return _judge(name, np.concatenate(parts), f"{opened.decoder} decodes", advice)


def _judge(name: str, frames: np.ndarray, found: str, advice: str) -> Finding:
    wanted = _FIRST + _STEP * np.arange(_FRAMES)
    if len(frames) != _FRAMES:
        return failure(name, f"returns {len(frames)} frames of a clip of {_FRAMES}", advice)
    off = int(np.abs(frames.mean((1, 2, 3)) - wanted).max())
    if off > _NEAR:
        return failure(name, f"returns wrong frames: a grey is off by {off} levels", advice)
    return ok(name, found)


def _check_process() -> Finding:
    """Decodes as the pipelines do: in a separate process, with a time limit."""
    from stop_core.decoding import DecodeError, DecodeProcess

    about = "decoding process"
    advice = "make sure that Python can start processes and map memory here"
    process = DecodeProcess(_FRAMES, 32, timeout=60)
    try:
        (clip,) = process.decode([PROBE])
    except OSError as problem:
        return failure(about, one_line(problem), advice)
    finally:
        process.close()
    if isinstance(clip, DecodeError):
        return failure(about, str(clip), advice)
    return _judge(about, clip.frames, f"starts, and decodes with {clip.decoder}", advice)


def check_open_clip() -> Iterator[Finding]:
    """Checks that open_clip can be imported, and that the embedded tower embeds a video."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as problem:
        yield failure(
            "open_clip",
            one_line(problem),
            "install versions of torch and torchvision that fit together, both from the same index",
        )
        return
    import torch

    from stop_core.clip.loading import load_clip
    from stop_core.model.baselines import ZeroShot

    model = ZeroShot(load_clip("tiny"))
    grey = torch.full((1, 2, model.image_size, model.image_size, 3), 128, dtype=torch.uint8)
    with torch.no_grad():
        length = model.encode_video(grey).norm().item()
    towers = len(open_clip.list_models())
    found = f"{open_clip.__version__}, {towers} models; the embedded tower computes"
    if abs(length - 1) > 1e-4:
        yield failure("open_clip", f"an embedding has length {length:.4f}, not 1", "reinstall it")
    else:
        yield ok("open_clip", found)


def check_cache(cache: str) -> Iterator[Finding]:
    """Checks that a frame cache is finished, and reads clips of every split."""
    from stop_core.cache import FrameCache

    about = "cache"
    try:
        frames = FrameCache(cache)
        counts = frames.manifest.counts
        for split, count in counts.items():
            if count:
                frames.split(split).read([0, count - 1])
    except (OSError, ValueError) as problem:
        yield failure(about, one_line(problem), "run `stop cache verify` to check every file")
        return
    clips = ", ".join(f"{count} {split}" for split, count in counts.items())
    manifest, config = frames.manifest, frames.manifest.config
    found = f"{cache}: {config.dataset}, {clips}, {config.frames} frames of {config.size} px"
    found += f"; {manifest.failures} clips failed" if manifest.failures else ""
    advice = f"see {cache}/failures.parquet, and preprocess with --retry-failed"
    yield warn_if(manifest.failures > 0, about, found, advice)
