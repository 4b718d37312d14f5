"""The shipped tiny CLIPs name the attributes of new stills; random weights do not."""

import pytest
import torch
from torch import Generator

from stop_core.tiny.shipped import TINY_TOWERS, TinyTower
from stop_core.tiny.tower import TinyTokenizer, build_tiny_clip
from tools.tiny_clip.stills import draw_stills
from tools.tiny_clip.zeroshot import zero_shot_accuracy


@pytest.mark.parametrize("tower", TINY_TOWERS.values(), ids=TINY_TOWERS.keys())
def test_shipped_weights_know_colour_size_and_position_of_fresh_stills(tower: TinyTower) -> None:
    generator = Generator().manual_seed(77)
    stills = draw_stills(256, generator, pixels=tower.image_size, single=True)
    accuracy = zero_shot_accuracy(build_tiny_clip(True, tower), TinyTokenizer(), stills)
    assert accuracy["colour"] >= 0.95
    assert accuracy["position"] >= 0.9
    assert accuracy["size"] >= 0.9
    assert accuracy["full"] >= 0.3  # chance is .001


def test_random_weights_know_nothing() -> None:
    torch.manual_seed(0)
    stills = draw_stills(256, Generator().manual_seed(77), single=True)
    accuracy = zero_shot_accuracy(build_tiny_clip(pretrained=False), TinyTokenizer(), stills)
    assert accuracy["colour"] < 0.4
    assert accuracy["full"] < 0.05
