"""An explanation equals the trace of the model, and a film has every frame."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stop_core.clip.loading import FrozenClip
from stop_core.explain.explanation import Answer, Explanation, best_answers, explain
from stop_core.explain.figure import (
    draw_below,
    draw_explanation,
    heat_picture,
    outline,
    regions_picture,
    scenes,
    wrapped,
    write_film,
)
from stop_core.model.baselines import ZeroShot
from stop_core.model.stop import StopModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig
from tests.stop_core.conftest import MakeClip, MakeFrames, Stir

CONFIG = ExperimentConfig(stop=StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4))
BY_FRAME = ("pictures_THWC", "A_TP", "M_TP", "W_s_TP", "chosen_TP")
ANSWERS = (Answer("a_class_with_a_name_that_goes_over_the_line", 0.7), Answer("other", 0.004))


@pytest.fixture(scope="module")
def model(make_clip: MakeClip, stir: Stir) -> StopModel:
    model = StopModel(make_clip(), CONFIG.stop)
    stir(model)
    return model


@pytest.fixture(scope="module")
def explanation(model: StopModel, make_frames: MakeFrames) -> Explanation:
    frames = make_frames(0, 1, 4, model.image_size)[0]
    return explain(model, CONFIG, frames, title="a clip", answers=ANSWERS, truth="other")


@pytest.mark.parametrize("block", [None, 1, 2])
def test_an_explanation_equals_the_trace_of_its_block(
    block: int | None, model: StopModel, make_frames: MakeFrames
) -> None:
    frames = make_frames(1, 1, 4, model.image_size)
    found = explain(model, CONFIG, frames[0], title="", block=block)
    trace = model.trace(frames)[1 if block is None else block - 1]
    for name in ("A", "M", "W_s"):
        np.testing.assert_array_equal(getattr(found, f"{name}_TP"), getattr(trace, name)[0])
    np.testing.assert_array_equal(found.chosen_TP, trace.r[0].bool())
    np.testing.assert_array_equal(found.W_t_G, trace.W_t[0])
    np.testing.assert_array_equal(found.N_t_G, trace.N_t[0])
    assert (found.block, found.blocks) == (block or 2, 2)


def test_an_unknown_block_and_a_model_without_prompts_are_refused(
    model: StopModel, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    frames = make_frames(0, 1, 2, model.image_size)[0]
    with pytest.raises(ValueError, match="from 1 to 2"):
        explain(model, CONFIG, frames, title="", block=3)
    clip: FrozenClip = make_clip()
    with pytest.raises(ValueError, match="method stop"):
        explain(ZeroShot(clip), CONFIG, frames, title="")


def test_the_best_answers_are_sorted_and_at_most_the_classes() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    found = best_answers(probabilities, ["a", "b", "c"], 5)
    assert [answer.label for answer in found] == ["b", "c", "a"]
    assert found[0].probability == pytest.approx(0.6)


@pytest.mark.parametrize("pixels", [12, 32, 50])
def test_only_chosen_patches_keep_their_pixels(pixels: int) -> None:
    picture = np.random.default_rng(0).integers(1, 256, (pixels, pixels, 3)).astype(np.uint8)
    chosen = np.zeros(9, bool)
    chosen[4] = True
    kept = (regions_picture(picture, chosen, 3) == picture / 255).all(-1)
    rows = np.arange(pixels) * 3 // pixels == 1
    np.testing.assert_array_equal(kept, rows[:, None] & rows[None])


def test_a_greater_value_is_a_lighter_colour() -> None:
    picture = np.full((6, 6, 3), 100, np.uint8)
    values = np.linspace(0, 1, 9, dtype=np.float32)
    light = heat_picture(picture, values, 3, 1.0)[::2, ::2].mean(-1).ravel()
    assert (np.diff(light) > -0.02).all()
    assert light[-1] > light[0] + 0.3


def test_neighbouring_regions_share_one_border() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    outline(axes, np.array([1, 1, 0, 0], bool), 2, 1.0)
    (border,) = axes.collections
    assert len(border.get_segments()) == 6, "around two squares, with none between them"


def test_the_figure_has_title_labels_and_counts(explanation: Explanation) -> None:
    figure = draw_explanation(explanation)
    texts = [text.get_text() for text in figure.texts]
    texts += [text.get_text() for axes in figure.axes for text in axes.texts]
    for wanted in ("a clip", "prediction", "$M$", "70%", "<1%", "other \u2713"):
        assert wanted in texts
    for count in explanation.N_t_G:
        assert str(count) in texts
    figure.canvas.draw()


def test_a_single_frame_is_drawn_without_gaps(model: StopModel, make_frames: MakeFrames) -> None:
    one = explain(model, CONFIG, make_frames(0, 1, 1, model.image_size)[0], title="still")
    draw_explanation(one).canvas.draw()
    assert len(list(scenes(one))) == 1


def test_more_frames_than_fit_are_drawn_evenly(explanation: Explanation) -> None:
    many = {name: np.repeat(getattr(explanation, name), 5, 0) for name in BY_FRAME}
    gaps = {name: np.resize(getattr(explanation, name), 19) for name in ("W_t_G", "N_t_G")}
    draw_explanation(replace(explanation, **many, **gaps)).canvas.draw()


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_a_film_has_every_frame_and_shows_the_last_one_longest(
    ending: str, explanation: Explanation, tmp_path: Path
) -> None:
    short = replace(
        explanation,
        **{n: getattr(explanation, n)[:2] for n in BY_FRAME},
        **{n: getattr(explanation, n)[:1] for n in ("W_t_G", "N_t_G")},
    )
    film = tmp_path / f"film{ending}"
    write_film([short], film)
    if ending == ".gif":
        with Image.open(film) as image:
            assert image.n_frames == 2
            assert image.size == (960, 540)
    else:
        with av.open(str(film)) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == 6 + 15
        assert (frames[0].width, frames[0].height) == (1280, 720)
    assert [path.name for path in tmp_path.iterdir()] == [film.name]


def test_several_models_are_drawn_one_below_the_other(
    explanation: Explanation, tmp_path: Path
) -> None:
    other = replace(explanation, title="another model")
    one, both = draw_below([explanation]), draw_below([explanation, other])
    assert both.size == (one.width, 2 * one.height)
    upper, lower = (np.asarray(both)[half] for half in np.array_split(range(both.height), 2))
    np.testing.assert_array_equal(upper, np.asarray(one))
    np.testing.assert_array_equal(lower, np.asarray(draw_below([other])))
    single = {n: getattr(explanation, n)[:1] for n in BY_FRAME}
    film = tmp_path / "film.gif"
    write_film([replace(one, **single) for one in (explanation, other)], film)
    with Image.open(film) as image:
        assert image.size == (960, 1080)
    with pytest.raises(ValueError, match="4 and 1 frames"):
        write_film([explanation, replace(other, **single)], film)


def test_another_ending_is_refused(explanation: Explanation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
        write_film([explanation], tmp_path / "film.avi")


def test_a_long_label_takes_at_most_two_lines() -> None:
    assert len(wrapped("one_two")) == 1
    assert len(wrapped("word " * 30)) == 2


@pytest.mark.parametrize(
    "label", ["a red shape moving left", "opening two windows", "playing the drums"]
)
def test_a_label_ends_before_its_percentage(explanation: Explanation, label: str) -> None:
    figure = draw_explanation(replace(explanation, answers=(Answer(label, 1.0),)))
    figure.canvas.draw()
    texts = {text.get_text(): text for axes in figure.axes for text in axes.texts}
    assert texts[label].get_window_extent().x1 < texts["100%"].get_window_extent().x0
