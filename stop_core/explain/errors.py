"""The clips that a model gets wrong, by confusion: their frames, with the regions that get prompts.

Shapes: M clips, T frames of S x S pixels.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stop_core.cache.reading import CachedClips
from stop_core.cache.views import View
from stop_core.explain.contact_sheet import LEAST_PIXELS, Strip, draw_contact_sheet
from stop_core.explain.explanation import Traceable, explain
from stop_core.explain.figure import regions_picture
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.templates import rendered

_MOST_FRAMES = 12
_TEMPLATE = Path(__file__).with_name("errors.html.jinja")


@dataclass(frozen=True)
class Confusion:
    """The clips of one class that a model takes for another."""

    truth: str
    predicted: str
    rows: pd.DataFrame
    """Their predictions; the most confident are first."""


def confusions(predictions: pd.DataFrame, names: Sequence[str]) -> list[Confusion]:
    """Returns the confusions of the predictions of one split, those with most clips first."""
    wrong = predictions[predictions["predicted"] != predictions["label"]]
    wrong = wrong.sort_values(["probability", "video_id"], ascending=[False, True])
    found = [
        Confusion(names[rows["label"].iloc[0]], names[rows["predicted"].iloc[0]], rows)
        for _, rows in wrong.groupby(["label", "predicted"])
    ]
    return sorted(found, key=lambda one: -len(one.rows))


def draw_confusion(
    confusion: Confusion,
    model: VideoModel,
    config: ExperimentConfig,
    clips: CachedClips,
    view: View,
    most: int,
) -> Image.Image:
    """Draws the most confident errors; of a model with prompts, other patches are pale."""
    number = {name: index for index, name in enumerate(clips.video_ids)}
    frames, size = view.check(*clips.shape[:2])
    strips = []
    for row in confusion.rows.head(most).to_dict("records"):
        frames_TSSC = clips.read([number[row["video_id"]]], view)[0]
        pictures = frames_TSSC.numpy()
        note = f"{row['probability']:.1%}; the true class {row['label_probability']:.1%}"
        if isinstance(model, Traceable):
            one = explain(model, config, frames_TSSC, title="")
            note += f"; prompts in the gaps: {' '.join(map(str, one.N_t_G))}"
            regions = [
                regions_picture(picture, chosen, one.side)
                for picture, chosen in zip(pictures, one.chosen_TP, strict=True)
            ]
            pictures = np.round(255 * np.stack(regions)).astype(np.uint8)
        strips.append(Strip(row["video_id"], note, pictures[:_MOST_FRAMES]))
    heading = f"{len(confusion.rows)} clips, {len(strips)} shown"
    enlarged = size * max(1, LEAST_PIXELS // size)
    return draw_contact_sheet(heading, strips, min(frames, _MOST_FRAMES), enlarged)


def errors_page(
    title: str, clips: int, found: Sequence[Confusion], sheets: Sequence[Image.Image]
) -> str:
    """Returns HTML without other files: the confusions of `clips` clips, the first with sheets."""
    drawn = []
    for one, sheet in zip(found[: len(sheets)], sheets, strict=True):
        stored = io.BytesIO()
        sheet.save(stored, format="PNG")
        drawn.append((one, f"data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}"))
    wrong = sum(len(one.rows) for one in found)
    values: dict[str, Any] = {"title": title, "clips": clips, "wrong": wrong, "found": found}
    return rendered(_TEMPLATE, html.escape, **values, sheets=drawn)
