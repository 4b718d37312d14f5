"""Laws of the estimate: it grows as the work does, and agrees with known sizes of CLIP."""

from collections import Counter
from dataclasses import replace

import pytest

from pipelines.training.estimate import estimate, listed_shape
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
