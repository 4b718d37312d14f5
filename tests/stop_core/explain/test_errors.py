"""A page of errors has every wrong clip once, the frames that the model read, and its numbers."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stop_core.cache import FrameCache
from stop_core.cache.views import View
from stop_core.explain.errors import confusions, draw_confusion, errors_page
from stop_core.explain.figure import regions_picture
from stop_core.model.baselines import ZeroShot
from stop_core.model.stop import StopModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig
from tests.caches import write_cache
from tests.stop_core.conftest import MakeClip

NAMES = ("red", "green", "<b>blue</b>")
CONFIG = ExperimentConfig(stop=StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4))


def _predictions(ids: list[str], labels: list[int], predicted: list[int]) -> pd.DataFrame:
    confident = np.linspace(0.5, 0.9, len(ids))
    return pd.DataFrame(
        {
            "video_id": ids,
            "label": labels,
            "predicted": predicted,
            "probability": confident,
            "label_probability": 1 - confident,
        }
    )


def test_every_wrong_clip_is_in_one_confusion_and_no_right_one() -> None:
    ids = list("abcdefg")
    rows = _predictions(ids, [0, 0, 1, 1, 2, 2, 2], [0, 1, 0, 1, 0, 0, 1])
    found = confusions(rows, NAMES)
    pairs = [(one.truth, one.predicted, list(one.rows["video_id"])) for one in found]
    assert pairs[0] == ("<b>blue</b>", "red", ["f", "e"]), "most clips, the most confident first"
    others = {("red", "green", "b"), ("green", "red", "c"), ("<b>blue</b>", "green", "g")}
    assert {(truth, predicted, *ids) for truth, predicted, ids in pairs[1:]} == others


def test_a_clip_is_drawn_with_the_frames_and_regions_of_its_model(
    hmdb51_root: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    cache = write_cache("hmdb51", hmdb51_root, tmp_path / "cache", frames=6, size=32)
    clips = FrameCache(cache).split("test")
    model = StopModel(make_clip(), CONFIG.stop)
    view = View(3, model.image_size)
    (one,) = confusions(_predictions([clips.video_ids[1]], [0], [1]), NAMES)
    frames = clips.read([1], view)
    (*_, trace) = model.trace(frames)
    regions = [
        np.round(255 * regions_picture(picture, chosen, 3))
        for picture, chosen in zip(frames[0].numpy(), trace.r[0].bool().numpy(), strict=True)
    ]
    scale = 96 // model.image_size
    for drawn, pictures in (
        (draw_confusion(one, model, CONFIG, clips, view, 6), regions),
        (draw_confusion(one, ZeroShot(make_clip()), CONFIG, clips, view, 6), frames[0].numpy()),
    ):
        sheet = np.asarray(drawn)
        for number, picture in enumerate(pictures):
            left = 16 + number * (model.image_size * scale + 6)
            window = sheet[78 : 78 + 96 : scale, left : left + 96 : scale]
            np.testing.assert_array_equal(window, picture)


def test_a_page_is_one_file_with_all_confusions_and_escaped_names() -> None:
    found = confusions(_predictions(["a", "b"], [0, 2], [1, 1]), NAMES)
    sheet = Image.new("RGB", (7, 5))
    page = errors_page("Errors <1>", 10, found, [sheet])
    assert "2 of 10 clips" in page
    assert page.count("<tr>") == 1 + len(found)
    assert "<b>" not in page
    assert "&lt;b&gt;blue" in page
    (stored,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(stored))).size == sheet.size
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
