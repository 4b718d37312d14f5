"""Laws of few-shot draws, of published lists, and of the division into base and novel classes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.datasets.protocols import base_labels, draw_shots, find_listed
from stop_core.settings.protocol import ProtocolConfig

CLASSES = ("brush_hair", "cartwheel", "HighJump", "Pushing [something] left", "wave")
labelled = st.lists(st.integers(0, 4), min_size=1, max_size=40)
seeds = st.integers(0, 2**31)


def _videos(labels: list[int]) -> list[str]:
    return [f"{CLASSES[label]}/v{n}" for n, label in enumerate(labels)]


@given(labels=labelled, shots=st.integers(1, 6), seed=seeds)
def test_a_draw_has_as_many_clips_of_each_class_and_contains_all_smaller_draws(
    labels: list[int], shots: int, seed: int
) -> None:
    drawn, few = draw_shots(_videos(labels), labels, shots, seed)
    counts, drawn_of = Counter(labels), Counter(labels[n] for n in drawn)
    assert drawn_of == {label: min(shots, n) for label, n in counts.items()}
    assert few == sorted(label for label, n in counts.items() if n < shots)
    assert drawn == sorted(set(drawn))
    smaller, _ = draw_shots(_videos(labels), labels, max(1, shots - 1), seed)
    assert set(smaller) <= set(drawn)


@given(labels=labelled, seed=seeds, data=st.data())
def test_a_draw_depends_on_no_order_and_on_no_other_class(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    videos = _videos(labels)

    def drawn(order: list[int], numbers: list[int]) -> set[str]:
        ids, own = [videos[n] for n in order], [numbers[labels[n]] for n in order]
        return {ids[n] for n in draw_shots(ids, own, 2, seed)[0]}

    every = list(range(len(labels)))
    whole = drawn(every, [0, 1, 2, 3, 4])
    order = data.draw(st.permutations(every))
    assert drawn(order, data.draw(st.permutations(range(5)))) == whole
    one = [n for n in every if labels[n] == labels[0]]
    assert drawn(one, [0, 1, 2, 3, 4]) == {v for v in whole if v in {videos[n] for n in one}}


def test_every_clip_can_be_drawn_and_seeds_differ() -> None:
    labels = [0] * 8
    draws = [tuple(draw_shots(_videos(labels), labels, 2, seed)[0]) for seed in range(60)]
    assert {clip for draw in draws for clip in draw} == set(range(8))
    assert len(set(draws)) > 15


@pytest.mark.parametrize("listed", ["wave/a b_1.avi", "a b_1.avi", "wave/a b_1", "a b_1.mp4"])
def test_a_listed_video_is_found_by_its_id_or_by_its_file_name(listed: str) -> None:
    videos = ["walk/a b_2", "wave/a b_1", "run/c"]
    assert find_listed(videos, [listed, "gone.avi"]) == ([1], ["gone.avi"])


def test_an_ambiguous_file_name_is_refused_and_an_id_is_not() -> None:
    videos = ["walk/a", "wave/a"]
    assert find_listed(videos, ["wave/a.avi"]) == ([1], [])
    with pytest.raises(ValueError, match=r"'a\.avi' is the name of 2 clips.*'walk/a'"):
        find_listed(videos, ["a.avi"])


@given(seed=st.none() | seeds, order=st.permutations(CLASSES))
def test_base_and_novel_classes_divide_the_classes(seed: int | None, order: list[str]) -> None:
    protocol = ProtocolConfig(classes="base", base_seed=seed)
    base = base_labels(order, protocol)
    assert len(base) == 3
    assert base == sorted(set(base))
    assert set(base) <= set(range(5))
    if seed is None:
        assert base == [0, 1, 2]
    else:
        names = {CLASSES[label] for label in base_labels(CLASSES, protocol)}
        assert {order[label] for label in base} == names


def test_a_list_names_the_base_classes_in_any_spelling() -> None:
    def listed(*names: str) -> ProtocolConfig:
        return ProtocolConfig(classes="base", base_classes=names)

    some = listed("Wave", "high jump", "pushing something left")
    assert base_labels(CLASSES, some) == [2, 3, 4]
    with pytest.raises(ValueError, match="base_classes has 'jump', which is no class"):
        base_labels(CLASSES, listed("jump"))
    for wrong in (CLASSES, ("a",)):
        with pytest.raises(ValueError, match="needs base and novel classes"):
            base_labels(wrong, listed(*wrong))
