"""Answers for one video, and their explanation."""

from dataclasses import replace
from pathlib import Path

import torch

from stop_core.decoding import DecodedClip
from stop_core.decoding.process import DECODE_TIMEOUT
from stop_core.explain.explanation import Answer, Explanation, best_answers, explain
from stop_core.trained_model.model import TrainedModel


def answer_video(
    trained: TrainedModel, video: Path, timeout: float = DECODE_TIMEOUT
) -> tuple[DecodedClip, tuple[Answer, ...]]:
    """Decodes a video; returns its frames and the most probable classes, if there are classes.

    Raises OSError or ValueError if it cannot be read or decoded.
    """
    clip = trained.preprocessing.decode(video, timeout)
    if not trained.labels:
        return clip, ()
    probability_C = trained.class_probabilities(torch.from_numpy(clip.frames)[None])[0]
    return clip, best_answers(probability_C, trained.labels)


def explain_video(
    trained: TrainedModel,
    video: Path,
    *,
    title: str,
    pixels: int = 384,
    block: int | None = None,
    truth: str | None = None,
    timeout: float = DECODE_TIMEOUT,
) -> Explanation:
    """Decodes a video for the model and, with frames of `pixels`, for the figures; explains it.

    Raises as `answer_video` and `explain` do.
    """
    how = trained.preprocessing
    short_side = how.short_side and round(how.short_side * pixels / how.size)
    clip, answers = answer_video(trained, video, timeout)
    # Both have the same frames, and the same square of them.
    pictures = replace(how, size=pixels, short_side=short_side).decode(video, timeout)
    return explain(
        trained.model,
        trained.config,
        torch.from_numpy(clip.frames),
        title=title,
        block=block,
        answers=answers,
        pictures_THWC=pictures.frames,
        times_T=clip.frame_time,
        truth=truth,
    )
