"""Answers untrusted requests with a trained model: a video, its bytes, its frames, or a text.

Paths have to be inside the configured video folder; without one, every path is refused. The number
of bytes is limited, and videos are decoded in a guarded process with a deadline and a memory limit.
The answer to an invalid request is its error.

Shapes: T frames of S x S pixels, C classes, E channels of the joint text-video space.
"""

import base64
import binascii
import math
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stop_core.decoding import DecodeError, DecodeProcess
from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service_options import ServiceOptions

KINDS = ("path", "video", "frames", "text")
"""Possible content of a request: exactly one of them."""

ARTIFACT = "trained_model"
"""Name of the trained model among the artifacts of an MLflow model."""
_MOST_CHARACTERS = 2000


class RequestError(ValueError):
    """An invalid request; the message is for its sender."""


Prepared = Tensor | str | RequestError
"""A request that is ready for the model: uint8 frames [T, S, S, 3], a text; or its refusal."""


class VideoService:
    """A loaded model and decoding processes. Thread-safe."""

    def __init__(self, model: TrainedModel, options: ServiceOptions) -> None:
        self.model = model
        self.folder = Path(options.video_folder).resolve(True) if options.video_folder else None
        self.options = options
        self._decoders: SimpleQueue[DecodeProcess] = SimpleQueue()
        for _ in range(options.decoders):
            self._decoders.put(model.preprocessing.decoder(options.decode_seconds))
        self._lock = threading.Lock()  # of the model

    def warm_up(self) -> None:
        """Folds the weights and starts the decoders, so that the first request is fast."""
        how = self.model.preprocessing
        self._run(torch.zeros(1, how.frames, how.size, how.size, 3, dtype=torch.uint8))
        for _ in range(self.options.decoders):
            # The file does not exist; the process starts and reports that.
            decoder = self._decoders.get()
            list(decoder.decode([Path("/nonexistent")]))
            self._decoders.put(decoder)

    def close(self) -> None:
        """Ends the decoding processes."""
        for _ in range(self.options.decoders):
            self._decoders.get().close()

    def answer(self, requests: Sequence[Mapping[str, Any]], top: int = 5) -> list[dict[str, Any]]:
        """Returns the answer to every request, in order; `error` is None or the reason.

        With classes it has `label`, `probability` and a list of the `top` most probable classes;
        without, `embedding`: E numbers of length 1, to be compared by their dot product.

        A request holds one of "path", "video" (URL-safe base64 of a video file), "frames" (URL-safe
        base64 of uint8 [T, S, S, 3]) or, for a model without classes, "text". A value of None
        counts as absent. Raises RequestError as `check`.
        """
        self.check(len(requests), top)
        return self.finish([(self.prepare(request), top) for request in requests])

    def check(self, count: int, top: int) -> None:
        """Raises RequestError for a wrong number of requests in a call, or a wrong `top`."""
        if not 1 <= count <= self.options.max_requests:
            raise RequestError(
                f"found {count} rows with one of {', '.join(KINDS)}; send from 1 to "
                f"{self.options.max_requests}"
            )
        if top < 1:
            raise RequestError(f"top is {top}; ask for at least 1 class")

    def prepare(self, request: Mapping[str, Any]) -> Prepared:
        """Checks and decodes a request, as for `answer`; waits for a free decoding process."""
        try:
            kind, value = _only(request)
            if kind != "text":
                return self._frames(kind, value)
            if self.model.classes:
                raise RequestError("this model has classes and takes no text; send a video")
            if not value.strip() or len(value) > _MOST_CHARACTERS:
                raise RequestError(f"text must have 1 to {_MOST_CHARACTERS} characters")
            return value
        except RequestError as problem:
            return problem

    def finish(self, prepared: Sequence[tuple[Prepared, int]]) -> list[dict[str, Any]]:
        """Returns the answers to requests, each with its `top`; runs the model once on all."""
        videos = [one for one, _ in prepared if isinstance(one, Tensor)]
        texts = [one for one, _ in prepared if isinstance(one, str)]
        with self._lock:
            of_videos = iter(self._run(torch.stack(videos)) if videos else ())
            of_texts = iter(self.model.embed_texts(texts).cpu() if texts else ())
        return [
            self._refusal(one)
            if isinstance(one, RequestError)
            else self._answer(next(of_texts if isinstance(one, str) else of_videos), top)
            for one, top in prepared
        ]

    def _run(self, frames_BTSSC: Tensor) -> Tensor:
        """Returns probabilities [B, C], or embeddings [B, E] without classes."""
        model = self.model
        run = model.class_probabilities if model.classes else model.embed_videos
        return run(frames_BTSSC).cpu()

    def _refusal(self, problem: RequestError) -> dict[str, Any]:
        empty = ("label", "probability", "top") if self.model.classes else ("embedding",)
        return {**dict.fromkeys(empty), "error": str(problem)}

    def _answer(self, row: Tensor, top: int) -> dict[str, Any]:
        if not self.model.classes:
            return {"embedding": row.tolist(), "error": None}
        labels = self.model.labels or ()
        values, numbers = row.topk(min(top, len(labels)))
        best = [
            {"label": labels[number], "probability": value}
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
        ]
        return {**best[0], "top": best, "error": None}

    def _frames(self, kind: str, value: str) -> Tensor:
        """Returns uint8 frames, [T, S, S, 3]."""
        if kind == "path":
            return self._decoded(video_inside(self.folder, value))
        # Checked before decoding: base64 has four characters for three bytes.
        most = int(self.options.max_video_mib * (1 << 20))
        if len(value) > 4 * (most // 3 + 1):
            raise RequestError(f"{kind} is longer than {most} bytes")
        try:
            # Both alphabets: the shell command `base64` writes the other one.
            plain = value.translate(str.maketrans("-_", "+/"))
            data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError) as problem:
            raise RequestError(
                f"{kind} is not base64 ({problem}); use the URL-safe alphabet"
            ) from None
        if kind == "frames":
            how = self.model.preprocessing
            shape = (how.frames, how.size, how.size, 3)
            if len(data) != math.prod(shape):
                raise RequestError(
                    f"frames has {len(data)} bytes; send uint8 RGB of shape {list(shape)}, "
                    f"{math.prod(shape)} bytes"
                )
            return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape).copy())
        with tempfile.TemporaryDirectory(prefix="stop-request-") as folder:
            path = Path(folder) / "video"
            path.write_bytes(data)
            return self._decoded(path)

    def _decoded(self, path: Path) -> Tensor:
        decoder = self._decoders.get()
        try:
            (clip,) = decoder.decode([path])
            if isinstance(clip, DecodeError):
                raise RequestError(f"the video cannot be decoded: {clip}")
            return torch.from_numpy(clip.frames.copy())
        finally:
            self._decoders.put(decoder)


def video_inside(folder: Path | None, name: str) -> Path:
    """Returns the file that a request names, if it is inside `folder` after resolving links.

    `folder` is absolute, without links. Raises RequestError otherwise, or without a folder.
    """
    if folder is None:
        raise RequestError(
            "this server reads no files; send the video itself, or ask the operator to set "
            "video_folder in the server's configuration"
        )
    try:
        found = (folder / name).resolve()
        there = found.is_relative_to(folder) and found.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, a loop of links
        there = False
    if not there:
        # The same for all, so that it does not reveal which files exist elsewhere.
        raise RequestError("path is not a file in the server's folder of videos")
    return found


def _only(request: Mapping[str, Any]) -> tuple[str, str]:
    given = {kind: request.get(kind) for kind in KINDS}
    # A table of several kinds of requests has NaN in empty cells.
    given = {k: v for k, v in given.items() if v is not None and v == v}
    if len(given) != 1:
        found = ", ".join(given) or "none of them"
        raise RequestError(f"a request has one of {', '.join(KINDS)}; this one has {found}")
    ((kind, value),) = given.items()
    if not isinstance(value, str):
        raise RequestError(f"{kind} must be a text, got {type(value).__name__}")
    return kind, value
