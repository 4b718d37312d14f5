"""No method computes tokens that nothing reads: the last block computes those of the embedding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import FrozenTower
from stop_core.model import prompted
from stop_core.model.methods import build_method
from stop_core.model.stop import StopModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import StopConfig

# These run open_clip's own forward, or the parts of a block.
OTHERS = ("aim", "lora", "clip4clip", "clip4clip-seqtransf", "vifi-clip")
CASES = [
    *((name, "frame") for name in METHODS if name not in OTHERS),
    *((name, "joint") for name in ("stop", "stop-static", "vpt-deep", "vpt-shallow")),
    *((name, "global") for name in ("stop", "stop-static", "stop-temporal-vpt")),
]
BLOCKS = 3
MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Records of every block whether it is the short one, and whether it passes prompts on."""
    made: list[tuple[bool, bool]] = []
    for name, short in (("run_block", "only_cls"), ("run_global_block", "only_global")):
        plain = getattr(FrozenTower, name)

        def noted(*given: Any, plain: Any = plain, short: str = short, **options: Any) -> Any:
            made.append((options.get(short, False), options.get("carry_prompts", False)))
            return plain(*given, **options)

        monkeypatch.setattr(FrozenTower, name, noted)
    return made


@torch.no_grad()
@pytest.mark.parametrize(("method", "attention"), CASES)
def test_only_the_last_block_computes_only_the_tokens_of_the_embedding(
    method: str, attention: Any, make_clip: MakeClip, make_frames: MakeFrames, calls: list[Any]
) -> None:
    config = ExperimentConfig(method=method, stop=StopConfig(n_s=2, depth=1, attention=attention))
    model = build_method(config, make_clip(layers=BLOCKS), 3).eval()
    model.encode_video(make_frames(0, 1, 2, model.image_size))
    assert [short for short, _ in calls] == [False] * (BLOCKS - 1) + [True]
    # Prompts stay as long as a later block reads them.
    assert [carries for _, carries in calls][-1] is False
    if method == "stop":
        assert [carries for _, carries in calls] == [True, True, False]


@torch.no_grad()
def test_the_embedding_is_that_of_the_first_global_token(
    make_clip: MakeClip, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StopConfig(n_s=2, attention="global", global_tokens=3)
    model = StopModel(make_clip(layers=BLOCKS), config).eval()
    frames, plain = make_frames(0, 2, 2, model.image_size), FrozenTower.run_global_block
    before = model.encode_video(frames)

    def stirred(*given: Any, **options: Any) -> Any:
        global_BGD, *rest = plain(*given, **options)
        if options["only_global"]:
            global_BGD = torch.cat([global_BGD[:, :1], global_BGD[:, 1:] + 9], 1)
        return global_BGD, *rest

    monkeypatch.setattr(FrozenTower, "run_global_block", stirred)
    assert torch.equal(model.encode_video(frames), before)


def test_prompts_that_every_block_replaces_are_not_computed(
    make_clip: MakeClip, make_frames: MakeFrames, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a block computed twice, unless activations are checkpointed for a gradient."""

    def fail(*given: object, **options: object) -> None:
        raise AssertionError("checkpoint")

    monkeypatch.setattr(prompted, "checkpoint", fail)
    config = ExperimentConfig(stop=StopConfig(n_s=2))
    model: Any = build_method(config, make_clip(layers=BLOCKS), 3)
    frames = make_frames(0, 1, 2, model.image_size)
    model.encode_video(frames)
    assert [carries for _, carries in calls] == [False] * BLOCKS
    model.checkpoint_activations = True
    with torch.no_grad():
        model.encode_video(frames)
    with pytest.raises(AssertionError, match="checkpoint"):
        model.encode_video(frames)
