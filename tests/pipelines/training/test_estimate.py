"""Laws of the estimate: it grows as the work does, and agrees with known sizes of CLIP."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from pipelines.cluster.resources import Resources
from pipelines.training.estimate import estimate, listed_shape, refuse_without_memory
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.training import TrainingOptions

B32 = ExperimentConfig(
    tower="ViT-B-32-quickgelu", pretrained="openai", precision="bf16", epochs=2, batch_size=64
)
CLIPS = Counter(train=640, val=64, test=128)


def test_a_frame_of_vit_b32_costs_about_nine_billion_operations() -> None:
    """CLIP's ViT-B/32 needs 4.4 billion multiply-adds on 49 patches; here are 4 prompts more."""
    one = estimate(replace(B32, epochs=1), None, 1, Counter(train=64, val=0, test=0))
    assert one.steps == 1
    assert one.operations / (3 * 64) == pytest.approx(2 * 4.4e9 * 54 / 50, rel=0.05)


def test_twice_the_frames_or_epochs_cost_twice_as_much() -> None:
    one = estimate(B32, None, 12, CLIPS)
    frames, epochs = (
        estimate(B32, None, 24, CLIPS),
        estimate(replace(B32, epochs=4), None, 12, CLIPS),
    )
    assert (one.steps, epochs.steps) == (20, 40)
    assert frames.operations == pytest.approx(2 * one.operations)
    assert 1.8 * one.operations < epochs.operations < 2 * one.operations  # one test for both
    assert estimate(replace(B32, frames=12), None, 24, CLIPS) == one, "only the used frames count"


def test_a_micro_batch_saves_memory_and_costs_time_only_for_retrieval() -> None:
    whole, part = estimate(B32, None, 12, CLIPS), estimate(B32, 16, 12, CLIPS)
    assert part.operations == whole.operations
    assert part.memory < 0.4 * whole.memory
    cached = estimate(B32, 16, 12, CLIPS, captions=640)
    assert whole.operations < cached.operations < 4 / 3 * whole.operations + 1
    assert cached.memory == part.memory


def test_every_caption_is_an_example() -> None:
    every = replace(B32, training=TrainingOptions(captions="every"))
    assert estimate(every, None, 12, CLIPS, captions=6400).steps == 200
    assert estimate(B32, None, 12, CLIPS, captions=6400).steps == 20


def test_full_training_trains_on_the_validation_clips_and_evaluates_none() -> None:
    full = replace(B32, protocol=ProtocolConfig(full_training=True))
    one = estimate(full, None, 12, CLIPS)
    assert one.steps == 2 * (640 + 64) // 64
    assert one == estimate(B32, None, 12, Counter(train=704, val=0, test=128))


def test_a_tower_from_a_repository_has_no_known_shape() -> None:
    with pytest.raises(ValueError, match=r"hf-hub:some/tower is not known .* that open_clip lists"):
        listed_shape("hf-hub:some/tower")


def test_a_batch_that_a_gpu_cannot_hold_is_refused_with_one_that_it_can() -> None:
    large = replace(B32, tower="ViT-L-14-quickgelu", batch_size=64)
    card = Resources(device="gpu", gpus_per_worker=1, gpu_bytes=80 << 30)
    with pytest.raises(ValueError, match=r"64 clips at once need about \d+ GiB") as refused:
        refuse_without_memory(large, 32, card)
    (fits,) = re.findall(r"--micro-batch (\d+) ", str(refused.value))
    assert estimate(large, int(fits), 32, CLIPS).memory <= 80 << 30
    assert estimate(large, int(fits) + 1, 32, CLIPS).memory > 80 << 30
    for resources in (
        replace(card, micro_batch=int(fits)),
        replace(card, workers=64),
        replace(card, checkpoint_activations=True),
        replace(card, gpu_bytes=0),
    ):
        refuse_without_memory(large, 32, resources)
    refuse_without_memory(replace(large, method="linear-probe"), 32, card)
    refuse_without_memory(B32, 12, card)
    with pytest.raises(ValueError, match=r"has 8 GiB of its GPU: use --checkpoint-activations"):
        refuse_without_memory(large, 64, replace(card, gpu_bytes=16 << 30, gpus_per_worker=0.5))
