"""Augmentation depends on its seed alone, treats all frames alike, and keeps uint8 pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandAugment

from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training import augmentation
from stop_core.training.augmentation import augment, mix, mixing

SEEDS = [(0, epoch, clip) for epoch in range(4) for clip in range(8)]
FLIP = TrainingOptions(flip=True)
MIXED = ExperimentConfig(training=TrainingOptions(mixup=0.4))


@pytest.fixture
def frames() -> Tensor:
    """A still clip: any change that differs between the frames shows."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(5, 15, (1, 24, 24, 3), generator=generator, dtype=torch.uint8) ** 2
    return frame.expand(3, -1, -1, -1).contiguous()


def test_half_of_the_clips_are_mirrored_and_none_that_must_not_be(frames: Tensor) -> None:
    shown = [augment(frames, FLIP, seed, may_flip=True) for seed in SEEDS]
    mirror = torch.from_numpy(np.ascontiguousarray(frames.numpy()[:, :, ::-1]))
    is_mirrored = [torch.equal(one, mirror) for one in shown]
    assert all(m or torch.equal(one, frames) for m, one in zip(is_mirrored, shown, strict=True))
    assert len(SEEDS) / 4 < sum(is_mirrored) < len(SEEDS) * 3 / 4
    assert all(torch.equal(augment(frames, FLIP, s, may_flip=False), frames) for s in SEEDS)


@pytest.mark.parametrize("operations", [1, 2, 14])
@pytest.mark.parametrize("magnitude", [1, 9, 30])
def test_randaugment_treats_all_frames_alike_and_depends_on_its_seed_alone(
    frames: Tensor, operations: int, magnitude: int
) -> None:
    options = TrainingOptions(randaugment=operations, randaugment_magnitude=magnitude)
    before, state = frames.clone(), torch.get_rng_state()
    shown = []
    for seed in SEEDS:
        one = augment(frames, options, seed, may_flip=False)
        assert one.dtype == torch.uint8
        assert one.shape == frames.shape
        assert all(torch.equal(frame, one[0]) for frame in one)
        torch.manual_seed(len(shown))
        assert torch.equal(one, augment(frames, options, seed, may_flip=False))
        shown.append(one)
    assert len({one.numpy().tobytes() for one in shown}) >= 4
    assert torch.equal(frames, before)
    torch.set_rng_state(state)


def test_all_operations_are_drawn_in_both_directions(frames: Tensor) -> None:
    options = TrainingOptions(randaugment=1, randaugment_magnitude=30)
    picture = frames.permute(0, 3, 1, 2)
    operations = augmentation._operations(1.0, 24)
    possible = [operation(picture, sign) for operation in operations for sign in (1, -1)]
    wanted = {one.permute(0, 2, 3, 1).numpy().tobytes() for one in possible}
    seeds = [(0, epoch, clip) for epoch in range(10) for clip in range(30)]
    drawn = {augment(frames, options, seed, may_flip=True).numpy().tobytes() for seed in seeds}
    assert drawn == wanted


def test_views_pixels_and_partners_are_drawn_independently() -> None:
    parts = [(), (augmentation._PIXELS,), (augmentation._MIXING,)]
    assert parts == [(), (1,), (2,)]  # a training that an earlier version began draws alike
    draws = {np.random.default_rng((3, 1, 4, *part)).random() for part in parts}
    assert len(draws) == len(parts)


def test_drawing_an_augmentation_leaves_the_random_numbers_of_pytorch_alone(
    frames: Tensor,
) -> None:
    """Dropout draws from them in another thread."""
    state = torch.get_rng_state()
    for seed in SEEDS:
        augment(frames, TrainingOptions(flip=True, randaugment=3), seed, may_flip=True)
        mixing(3, 10, MIXED, 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [1, 9, 21, 30])
def test_the_operations_are_those_of_torchvision(magnitude: int, sign: int) -> None:
    theirs, generator = RandAugment(), torch.Generator().manual_seed(0)
    picture = torch.randint(10, 240, (2, 3, 224, 224), generator=generator, dtype=torch.uint8)
    ours = augmentation._operations(magnitude / 30, 224)
    for operation, (name, (strengths, is_signed)) in zip(
        ours, theirs._AUGMENTATION_SPACE.items(), strict=True
    ):
        table = strengths(31, 224, 224)
        strength = 0.0 if table is None else float(table[magnitude]) * (sign if is_signed else 1)
        expected = theirs._apply_image_or_video_transform(
            picture, name, strength, theirs.interpolation, theirs._fill
        )
        found = operation(picture, sign)
        # Theirs computes the strength in float32, which moves few pixels, or rounds by one.
        assert ((found.int() - expected.int()).abs() > 1).float().mean() < 1e-3, name
        assert torch.equal(found, picture) == (name == "Identity") or magnitude < 9, name


def test_a_mixed_clip_is_the_weighted_mean_of_two_rounded(frames: Tensor) -> None:
    other = 255 - frames
    for weight in (0.0, 0.25, 0.5, 0.9, 1.0):
        expected = weight * frames.double() + (1 - weight) * other.double()
        found = mix(frames, other, weight)
        assert found.dtype == torch.uint8
        assert (found.double() - expected).abs().max() <= 0.5 + 1e-4
    assert torch.equal(mix(frames, other, 1.0), frames)
    assert torch.equal(mix(frames, other, 0.0), other)


def test_the_partner_and_weight_of_mixup_depend_on_seed_epoch_and_example() -> None:
    drawn = [mixing(example, 50, MIXED, epoch) for example in range(50) for epoch in range(40)]
    assert drawn == [mixing(e, 50, MIXED, epoch) for e in range(50) for epoch in range(40)]
    assert mixing(3, 50, MIXED, 2) != mixing(3, 50, replace(MIXED, seed=1), 2)
    assert mixing(3, 50, MIXED, 2) == mixing(3, 50, replace(MIXED, batch_size=7), 2)
    partners, weights = zip(*drawn, strict=True)
    assert set(partners) == set(range(50))
    # The mean and variance of Beta(a, a) are 1/2 and 1 / (4 (2 a + 1)).
    assert np.mean(weights) == pytest.approx(0.5, abs=0.03)
    assert np.var(weights) == pytest.approx(1 / (4 * 1.8), rel=0.1)
