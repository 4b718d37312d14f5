"""Answering requests of strangers with a trained model: a video, its bytes, its frames, or a text.

Nothing that a request holds is trusted. A path must lie below a folder that the server was given,
and without one every path is refused; bytes are bounded, and decoded in a guarded process with a
deadline and a limit of memory. What is wrong with a request is told in its answer.

Shapes: T frames of S x S pixels, C classes, E channels of the joint text-video space.
"""

import base64
import binascii
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stop_core.decoding import DecodeError
from stop_core.trained_model.model import TrainedModel

KINDS = ("path", "video", "frames", "text")
"""What a request may hold; it holds exactly one of them."""


OPTIONS: dict[str, Any] = {
    "video_folder": None,
    "device": "auto",
    "max_requests": 16,
    "max_video_mib": 64,
    "decode_seconds": 20.0,
}
"""What whoever runs a server can choose; docs/serving.md says what each does."""


class RequestError(ValueError):
    """What is wrong with a request, in a sentence for whoever sent it."""


@dataclass(frozen=True)
class Limits:
    """What a request may cost. The HTTP server in front has to bound the size of a request."""

    requests: int = 16
    """Requests that are answered together."""
    video_bytes: int = 64 << 20
    """Of an encoded video."""
    decode_seconds: float = 20.0
    """Of one video; the decoding process is killed then."""
    text_letters: int = 2000

    def __post_init__(self) -> None:
        for name in ("requests", "video_bytes", "decode_seconds", "text_letters"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class VideoService:
    """Holds a model that is loaded once, and a process that decodes; safe for several threads.

    Args:
        model: what answers.
        folder: below which a request may name files; None refuses every path.
        limits: what a request may cost.
    """

    def __init__(
        self, model: TrainedModel, folder: Path | None = None, limits: Limits | None = None
    ) -> None:
        self.model = model
        self.folder = folder.resolve(strict=True) if folder is not None else None
        self.limits = limits or Limits()
        self._decoder = model.preprocessing.decoder(self.limits.decode_seconds)
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Pays once for what the first request would wait for: folding, and the decoder."""
        how = self.model.preprocessing
        frames = torch.zeros(1, how.frames, how.size, how.size, 3, dtype=torch.uint8)
        self._embed(frames)
        # No such file: the process starts, and says so.
        list(self._decoder.decode([Path("/nonexistent")]))

    def close(self) -> None:
        """Ends the decoding process."""
        self._decoder.close()

    def answer(self, requests: Sequence[Mapping[str, Any]], top: int = 5) -> list[dict[str, Any]]:
        """Answers every request, in order; `error` is None or says what is wrong with it.

        Args:
            requests: each holds one of "path", "video" (URL-safe base64 of a video file),
                "frames" (URL-safe base64 of uint8 [T, S, S, 3]) or, for a model without classes,
                "text". A value of None counts as absent.
            top: classes of an answer, the most probable ones.

        Returns:
            With classes: `label`, `probability` and `top`, a list of both. Without: `embedding`,
            E numbers of length 1, to be compared by their product.

        Raises:
            RequestError: if there are none or too many of them, or `top` is below 1.
        """
        if not 1 <= len(requests) <= self.limits.requests:
            raise RequestError(
                f"found {len(requests)} rows with one of {', '.join(KINDS)}; send from 1 to "
                f"{self.limits.requests}"
            )
        if top < 1:
            raise RequestError(f"top is {top}; ask for at least 1 class")
        with self._lock:
            return [self._answer(request, top) for request in requests]

    def _answer(self, request: Mapping[str, Any], top: int) -> dict[str, Any]:
        try:
            kind, value = _only(request)
            if kind == "text":
                return self._embedding(self.model.embed_texts([self._text(value)]))
            frames = self._frames(kind, value)
        except RequestError as problem:
            empty = ("label", "probability", "top") if self.model.classes else ("embedding",)
            return {**dict.fromkeys(empty), "error": str(problem)}
        if not self.model.classes:
            return self._embedding(self.model.embed_videos(frames))
        probability_C = self.model.class_probabilities(frames)[0].cpu()
        labels = self.model.labels or ()
        best = probability_C.topk(min(top, len(labels)))
        found = [
            {"label": labels[i], "probability": p}
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return {**found[0], "top": found, "error": None}

    @staticmethod
    def _embedding(embedding_1E: Tensor) -> dict[str, Any]:
        return {"embedding": embedding_1E[0].cpu().tolist(), "error": None}

    def _embed(self, frames: Tensor) -> None:
        if self.model.classes:
            self.model.class_probabilities(frames)
        else:
            self.model.embed_videos(frames)

    def _text(self, value: str) -> str:
        if self.model.classes:
            raise RequestError("this model answers with classes and takes no text; send a video")
        if not value.strip() or len(value) > self.limits.text_letters:
            raise RequestError(f"text must have 1 to {self.limits.text_letters} letters")
        return value

    def _frames(self, kind: str, value: str) -> Tensor:
        """uint8 [1, T, S, S, 3]."""
        if kind == "path":
            return self._decoded(self._allowed(value))
        # Before it is decoded: base64 makes four letters of three bytes.
        if len(value) > 4 * (self.limits.video_bytes // 3 + 1):
            raise RequestError(f"{kind} is longer than {self.limits.video_bytes} bytes")
        data = _from_base64(kind, value)
        if kind == "frames":
            return self._raw(data)
        with tempfile.TemporaryDirectory(prefix="stop-request-") as folder:
            path = Path(folder) / "video"
            path.write_bytes(data)
            return self._decoded(path)

    def _decoded(self, path: Path) -> Tensor:
        (clip,) = self._decoder.decode([path])
        if isinstance(clip, DecodeError):
            raise RequestError(f"the video cannot be decoded: {clip}")
        return torch.from_numpy(clip.frames.copy())[None]

    def _raw(self, data: bytes) -> Tensor:
        how = self.model.preprocessing
        shape = (how.frames, how.size, how.size, 3)
        if len(data) != how.frames * how.size * how.size * 3:
            raise RequestError(
                f"frames has {len(data)} bytes; send uint8 RGB of shape {list(shape)}, "
                f"{how.frames * how.size * how.size * 3} bytes"
            )
        return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape).copy())[None]

    def _allowed(self, value: str) -> Path:
        """The file that a path names, if it lies below the folder, links followed."""
        if self.folder is None:
            raise RequestError(
                "this server reads no files; send the video itself, or let whoever runs the server "
                "name a folder of videos in its configuration (video_folder)"
            )
        try:
            found = (self.folder / value).resolve()
            inside = found.is_relative_to(self.folder)
            there = inside and found.is_file()
        except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, a loop of links
            there = False
        if not there:
            # Alike for all, so that nobody learns which files there are elsewhere.
            raise RequestError("path names no file below the server's folder of videos")
        return found


def _only(request: Mapping[str, Any]) -> tuple[str, str]:
    given = {kind: request.get(kind) for kind in KINDS}
    # A table of requests of several kinds has NaN where a request has nothing.
    given = {k: v for k, v in given.items() if v is not None and v == v}
    if len(given) != 1:
        found = ", ".join(given) or "none of them"
        raise RequestError(f"a request holds one of {', '.join(KINDS)}; this one has {found}")
    ((kind, value),) = given.items()
    if not isinstance(value, str):
        raise RequestError(f"{kind} must be a text, got {type(value).__name__}")
    return kind, value


def _from_base64(kind: str, value: str) -> bytes:
    try:
        # The other alphabet too: `base64` of a shell writes that one.
        plain = value.translate(str.maketrans("-_", "+/"))
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as problem:
        raise RequestError(f"{kind} is not base64 ({problem}); use the URL-safe letters") from None
