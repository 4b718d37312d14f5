"""Words that are wrong in a mirror are found, and no others."""

import pytest

from stop_core.settings.training import TrainingOptions, names_side


@pytest.mark.parametrize(
    "words",
    [
        "Pushing [something] from left to right",
        "turn left",
        "a man on the RIGHT, in red",
        "left_hand_wave",
        "moving rightwards",
        "the left-most cup",
        "turning it counter-clockwise",
    ],
)
def test_left_right_and_rotation_name_a_side(words: str) -> None:
    assert names_side(words)


@pytest.mark.parametrize("words", ["a bright cleft", "leftovers", "copyright", "up and down", ""])
def test_other_words_name_none(words: str) -> None:
    assert not names_side(words)


def test_an_order_by_shards_mixes_no_clips() -> None:
    with pytest.raises(
        ValueError, match=r"mixup is 0\.5, and mixes each clip with one of any shard"
    ):
        TrainingOptions(mixup=0.5, shuffle="shards")
    assert TrainingOptions(mixup=0.5).shuffle == "global"
    assert TrainingOptions(shuffle="shards").mixup == 0
