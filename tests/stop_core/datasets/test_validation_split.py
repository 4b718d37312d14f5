"""The laws of the validation carve, over random datasets."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.datasets import NO_LABEL, Clip, carve_validation

# Class and source of every training clip; few sources, so that many are shared between classes.
listings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=80)


def _clips(listing: list[tuple[int, int]], private_sources: bool = False) -> list[Clip]:
    clips = []
    for i, (label, source) in enumerate(listing):
        name = f"{label}-{source}" if private_sources else str(source)
        split = "test" if source == 12 else "train"
        clips.append(Clip(f"v{i}", f"v{i}.avi", split, label, f"class{label}", name))
    return clips


def _of(clips: list[Clip], split: str) -> list[Clip]:
    return [clip for clip in clips if clip.split == split]


@given(listings, st.integers(0, 3))
def test_no_source_on_both_sides_and_no_class_emptied(
    listing: list[tuple[int, int]], seed: int
) -> None:
    before = _clips(listing)
    after = carve_validation(before, seed=seed)
    sources = [{clip.source for clip in _of(after, split)} for split in ("train", "val")]
    assert not sources[0] & sources[1]
    assert {c.label for c in _of(after, "train")} == {c.label for c in _of(before, "train")}
    assert _of(after, "test") == _of(before, "test")
    assert [clip.video_id for clip in after] == [clip.video_id for clip in before]


@given(listings, st.integers(0, 3))
def test_every_class_with_two_sources_is_validated(
    listing: list[tuple[int, int]], seed: int
) -> None:
    before = _clips(listing, private_sources=True)
    after = carve_validation(before, seed=seed)
    sources = {(clip.label, clip.source) for clip in _of(before, "train")}
    rich = {label for label, n in Counter(label for label, _ in sources).items() if n > 1}
    assert {clip.label for clip in _of(after, "val")} == rich


@given(listings, st.randoms(use_true_random=False))
def test_the_carve_does_not_depend_on_the_order(
    listing: list[tuple[int, int]], order: random.Random
) -> None:
    clips = _clips(listing)
    shuffled = clips.copy()
    order.shuffle(shuffled)
    assert sorted(carve_validation(shuffled), key=lambda c: c.video_id) == sorted(
        carve_validation(clips), key=lambda c: c.video_id
    )


def test_about_a_tenth_goes_and_the_seed_decides_which() -> None:
    clips = _clips([(label, 100 + k) for label in range(5) for k in range(70)])
    first, second = (carve_validation(clips, seed=seed) for seed in (0, 1))
    assert len(_of(first, "val")) == 35
    assert _of(first, "val") != _of(second, "val")
    assert carve_validation(clips, seed=0) == first


@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.integers(0, 3))
def test_clips_without_a_class_are_carved_by_source_too(sources: list[int], seed: int) -> None:
    clips = [
        Clip(f"v{i}", f"v{i}.mp4", "train", NO_LABEL, "", str(source), ("a caption",))
        for i, source in enumerate(sources)
    ]
    after = carve_validation(clips, seed=seed)
    train, val = ({clip.source for clip in _of(after, split)} for split in ("train", "val"))
    assert not train & val
    assert train
    assert bool(val) == (len(set(sources)) > 1)
    # One source at least; a tenth of the clips where the sources are small enough.
    largest = Counter(sources).most_common(1)[0][1]
    assert len(_of(after, "val")) <= max(largest, round(len(sources) / 10))


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        carve_validation([], fraction=fraction)
