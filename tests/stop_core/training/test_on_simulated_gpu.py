"""Every method trains and is evaluated on a GPU with the results of the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stop_core.clip.loading import FrozenClip, SharedClip
from stop_core.datasets.clip import Task
from stop_core.evaluation.measure import Measured
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import seed_weights
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import StopConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training.clip_views import ShownClips
from stop_core.training.objectives import Objective, Recognition, Retrieval
from stop_core.training.trainer import Trainer
from tests.simulated_gpu import Traffic, simulated_gpu
from tests.stop_core.conftest import MakeClip
from tests.stop_core.memory_clips import MemoryClips

STOP = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4)
CONFIG = ExperimentConfig(
    stop=STOP,
    epochs=1,
    batch_size=4,
    warmup_steps=0,
    static_prompts=2,
    training=TrainingOptions(adam_eps=1e-3),  # Adam amplifies rounding otherwise
)
CLASSES = [["a red shape"], ["a green shape"], ["a blue shape"]]
RUNS = [(name, "recognition") for name in METHODS] + [
    (name, "retrieval") for name, method in METHODS.items() if method.reads_text
]
VARIANTS = {
    "joint": replace(CONFIG, stop=replace(STOP, attention="joint")),
    "average": replace(CONFIG, ema=0.5),
    "running": replace(CONFIG, stop=replace(STOP, normalize="running")),
    "context": replace(CONFIG, context_tokens=2),
    "mixup": replace(CONFIG, training=replace(CONFIG.training, mixup=0.5, label_smoothing=0.1)),
    "bf16": replace(CONFIG, precision="bf16"),
}


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with simulated_gpu() as counted:
        yield counted


def _built(
    config: ExperimentConfig, task: Task, device: str, clip: FrozenClip
) -> tuple[VideoModel, ShownClips, Objective]:
    seed_weights(config.seed)
    model = build_method(config, clip, 3).to(device)
    memory: Any = MemoryClips(4, frames=2, size=12)
    shown = ShownClips(memory, config, 12, is_trained=True)
    if task == "retrieval":
        return model, shown, Retrieval(model, config, shown, [])
    return model, shown, Recognition(model, config, shown, ClassTexts(model, CLASSES))


def _train(
    config: ExperimentConfig,
    task: Task,
    device: str,
    clip: FrozenClip,
    *,
    micro_batch: int | None = None,
    checkpoint_activations: bool = False,
) -> tuple[dict[str, Tensor], Measured]:
    """Trains one epoch; returns the trained tensors and the metrics."""
    model, shown, objective = _built(config, task, device, clip)
    if checkpoint_activations:
        model.checkpoint_activations = True
    if model.trainable():
        trainer = Trainer(model, config, shown, objective, micro_batch=micro_batch)
        assert [step.step for step in trainer.steps(0)] == [0]
        model.load_prompt_state_dict(trainer.average.weights())
    measured = objective.measure(shown)
    return {name: tensor.cpu() for name, tensor in model.prompt_state_dict().items()}, measured


def _assert_equal(
    found: tuple[dict[str, Tensor], Measured], expected: tuple[dict[str, Tensor], Measured]
) -> None:
    (tensors, measured), (wanted, metrics) = found, expected
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
    assert measured.metrics == pytest.approx(metrics.metrics)


@pytest.mark.parametrize(("method", "task"), RUNS)
def test_every_training_of_a_process_equals_that_on_the_cpu(
    method: str, task: Task, traffic: Traffic, make_clip: MakeClip
) -> None:
    config, clip = replace(CONFIG, method=method), make_clip()
    expected = _train(config, task, "cpu", make_clip())
    shared = SharedClip(clip.name, clip.model, clip.tokenize)
    # The trials of a sweep share the tower.
    for _ in range(2 if task == "recognition" else 1):
        _assert_equal(_train(config, task, "cuda", shared), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_of_training_work_on_a_gpu(
    variant: str, traffic: Traffic, make_clip: MakeClip
) -> None:
    config = VARIANTS[variant]
    found = _train(config, "recognition", "cuda", make_clip())
    if variant != "bf16":  # the simulated GPU rounds at other places than the CPU
        _assert_equal(found, _train(config, "recognition", "cpu", make_clip()))


@pytest.mark.parametrize("task", ["recognition", "retrieval"])
def test_less_memory_gives_the_same_training(
    task: Task, traffic: Traffic, make_clip: MakeClip
) -> None:
    whole = _train(CONFIG, task, "cuda", make_clip())
    _assert_equal(_train(CONFIG, task, "cuda", make_clip(), micro_batch=2), whole)
    _assert_equal(_train(CONFIG, task, "cuda", make_clip(), checkpoint_activations=True), whole)


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("recognition", TrainingOptions()),
        ("recognition", TrainingOptions(mixup=0.5)),
        ("retrieval", TrainingOptions()),
        ("retrieval", TrainingOptions(captions="every")),
    ],
)
def test_a_step_waits_for_the_gpu_once(
    task: Task,
    options: TrainingOptions,
    micro_batch: int | None,
    traffic: Traffic,
    make_clip: MakeClip,
) -> None:
    config = replace(CONFIG, batch_size=2, ema=0.9, training=options)
    model, shown, objective = _built(config, task, "cuda", make_clip())
    waits = []
    for _ in Trainer(model, config, shown, objective, micro_batch=micro_batch).steps(0):
        waits.append(sum(traffic.reads.values()))
        traffic.clear()
    assert len(waits) > 1
    assert set(waits[1:]) == {1}  # the first step also prepares the frozen weights
