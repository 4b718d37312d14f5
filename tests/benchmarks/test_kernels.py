"""The kernels and bytes of a training step stay as few as they are: exact counts, no times."""

import pytest
import torch
from open_clip.model import CLIP, set_model_preprocess_cfg

from benchmarks.kernels import Step, count_step
from stop_core.clip.loading import FrozenClip
from stop_core.settings.stop import Attention

BLOCKS = 3


def small_clip() -> FrozenClip:
    """Returns a random CLIP without data, in the mode of the counting."""
    vision = {"layers": BLOCKS, "width": 24, "head_width": 12, "patch_size": 4, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 2, "layers": 1}
    model = CLIP(12, vision, text, quick_gelu=True)
    set_model_preprocess_cfg(model, {"mean": (0.5, 0.5, 0.5), "std": (0.3, 0.3, 0.3)})
    return FrozenClip("small", model.requires_grad_(False).eval(), lambda _: torch.zeros(1, 8))


@pytest.fixture(scope="module", params=["frame", "joint"])
def step(request: pytest.FixtureRequest) -> Step:
    attention: Attention = request.param
    return count_step(small_clip, 2, 4, attention, bf16=True)


def test_the_prompting_of_a_block_starts_few_kernels(step: Step) -> None:
    assert step.kernels("prompting") <= 108 * step.prompted_blocks


def test_a_training_step_starts_few_kernels(step: Step) -> None:
    # The figures that were reached. A change that starts more needs a reason.
    assert step.kernels() <= 893
    assert step.kernels("backward") <= 488
    assert sum(k.kernels for k in step.lean) == 85


def test_no_attention_has_a_mask_so_flash_kernels_take_it(step: Step) -> None:
    attentions = [k for k in step.stop if "attention" in k.name]
    assert len(attentions) >= 4 * step.prompted_blocks  # the block's and P^t's, with gradients
    assert not any(k.is_masked for k in attentions)


def test_the_floor_does_no_work_of_the_prompts(step: Step) -> None:
    stop, lean = step.seconds
    assert stop > lean > 0
    assert {k.part for k in step.lean} == {"lean"}
    assert {k.part for k in step.stop} == {"embed", "prompting", "block", "backward"}
