"""Captions are true of their stills, and of every other still they describe."""

import pytest
import torch
from torch import Generator
from torch.nn.functional import avg_pool2d

from stop_core.tiny.tower import VOCABULARY
from tools.tiny_clip.stills import caption_matches, describe_object, draw_stills

SEED = 3


def test_stills_are_a_function_of_the_generator() -> None:
    first, second = (draw_stills(16, Generator().manual_seed(SEED)) for _ in range(2))
    assert torch.equal(first.images_NCHW, second.images_NCHW)
    assert first.captions == second.captions


@pytest.mark.parametrize("pixels", [32, 64])
def test_images_are_normalised_as_the_tower_takes_them(pixels: int) -> None:
    images = draw_stills(16, Generator().manual_seed(SEED), pixels=pixels).images_NCHW
    assert images.shape == (16, 3, pixels, pixels)
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.min() < -0.5


def test_a_still_is_the_same_picture_at_any_size() -> None:
    small, large = (draw_stills(32, Generator().manual_seed(SEED), pixels=p) for p in (32, 64))
    assert torch.equal(small.labels_NA, large.labels_NA)
    apart_NCHW = avg_pool2d(large.images_NCHW, 2) - small.images_NCHW
    # Grain of 0.04, random at each size, in images from -1 to 1.
    assert apart_NCHW.std() == pytest.approx(2 * 0.04 * (1 + 1 / 4) ** 0.5, rel=0.1)


def test_a_caption_is_true_of_its_own_still_and_of_few_others() -> None:
    match = draw_stills(64, Generator().manual_seed(SEED)).match_NN
    assert match.diagonal().all()
    assert 1 < match.sum(0).double().mean() < 24


def test_matches_are_those_of_a_naive_reading() -> None:
    generator = Generator().manual_seed(SEED)
    labels = torch.randint(2, (24, 2, 4), generator=generator)
    two, full = (torch.rand(24, generator=generator) < 0.5 for _ in range(2))
    named = (torch.rand(24, 4, generator=generator) < 0.5) | full[:, None]
    match = caption_matches(labels, two, named, full & two)

    def shows(image: int, caption: int, which: int) -> bool:
        wanted = [int(v) for v in labels[caption, which][named[caption]]]
        objects = labels[image, : 2 if two[image] else 1]
        return any([int(v) for v in seen[named[caption]]] == wanted for seen in objects)

    for image in range(24):
        for caption in range(24):
            naive = shows(image, caption, 0)
            if full[caption] and two[caption]:
                naive = naive and bool(two[image]) and shows(image, caption, 1)
            assert bool(match[image, caption]) == naive


def test_every_word_of_a_caption_is_in_the_vocabulary() -> None:
    words = " ".join(draw_stills(256, Generator().manual_seed(SEED)).captions).split()
    assert set(words) <= set(VOCABULARY)


def test_only_what_is_named_is_described() -> None:
    labels = [0, 1, 2, 0]
    assert describe_object(labels) == "small green triangle at the top left"
    assert describe_object(labels, [False, True, False, False]) == "green shape"


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        draw_stills(0, Generator())
