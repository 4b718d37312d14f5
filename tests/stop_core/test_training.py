"""Laws of training: every clip once an epoch, one result for one seed, frozen means frozen."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stop_core import training
from stop_core.clip import FrozenClip, load_clip
from stop_core.config import StopConfig
from stop_core.datasets.clip import Task
from stop_core.distributed import my_share, sum_gradients
from stop_core.experiment import METHODS, ExperimentConfig, Method
from stop_core.memory import OutOfMemory
from stop_core.methods import build_method
from stop_core.objectives import Objective, Recognition, Retrieval
from stop_core.prompted_model import PromptedModel
from stop_core.text import ClassTexts
from stop_core.training import (
    DivergedError,
    Step,
    Trainer,
    epoch_batches,
    learning_rate_at,
    seed_weights,
)
from stop_core.video_model import VideoModel
from tests.stop_core.memory_clips import MemoryClips
from tests.stop_core.processes import run_together

SMALL = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4)
CONFIG = ExperimentConfig(stop=SMALL, epochs=2, batch_size=4, warmup_steps=2)
TRAINED = [method for method in METHODS if method != "zero-shot"]
CLASSES = [["a red shape"], ["a green shape"], ["a blue shape"]]


def _trainer(
    config: ExperimentConfig,
    task: Task = "recognition",
    micro_batch: int | None = None,
    clip: FrozenClip | None = None,
) -> Trainer:
    seed_weights(config.seed)
    model, clips = build_method(config, clip or load_clip("tiny"), 3), MemoryClips()
    objective: Objective = (
        Recognition(model, config, clips, ClassTexts(model, CLASSES))
        if task == "recognition"
        else Retrieval(model, config, clips, [])
    )
    return Trainer(model, config, clips, objective, micro_batch=micro_batch)


def _run(trainer: Trainer, first: int = 0, last: int | None = None) -> list[Step]:
    """Steps `first` to `last` - 1 of a training."""
    last, steps = last or trainer.total_steps, []
    while first < last:
        for step in trainer.steps(first):
            steps.append(step)
            first += 1
            if first == last:
                break
    return steps


def _train(
    config: ExperimentConfig, clip: FrozenClip | None = None
) -> tuple[VideoModel, list[Step]]:
    trainer = _trainer(config, clip=clip)
    steps = _run(trainer)
    return trainer.model, steps


@pytest.mark.parametrize(("clips", "batch"), [(10, 4), (8, 4), (1, 8), (9, 1)])
def test_an_epoch_holds_every_clip_once(clips: int, batch: int) -> None:
    batches = epoch_batches(clips, replace(CONFIG, batch_size=batch), epoch=0)
    assert sorted(clip for one in batches for clip in one) == list(range(clips))
    assert len(batches) == math.ceil(clips / batch)


def test_the_order_follows_seed_and_epoch_alone() -> None:
    order = epoch_batches(50, CONFIG, 1)
    assert epoch_batches(50, CONFIG, 1) == order
    assert epoch_batches(50, CONFIG, 2) != order
    assert epoch_batches(50, replace(CONFIG, seed=1), 1) != order


def test_the_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(CONFIG, warmup_steps=5, learning_rate=1.0)
    rates = [learning_rate_at(step, 50, config) for step in range(50)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[0] == pytest.approx(0.2)
    assert learning_rate_at(50, 50, config) == pytest.approx(0)


@pytest.mark.parametrize("method", TRAINED)
def test_one_seed_gives_one_result_bit_for_bit(method: Method) -> None:
    config = replace(CONFIG, method=method)
    first, second = (_train(config)[0].prompt_state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = _train(replace(config, seed=1))[0].prompt_state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", TRAINED)
def test_training_moves_every_prompt_and_no_bit_of_clip(method: Method) -> None:
    config, clip = replace(CONFIG, method=method), load_clip("tiny")
    seed_weights(config.seed)
    before = build_method(config, load_clip("tiny"), 3).prompt_state_dict()
    model, _ = _train(config, clip)
    after = model.prompt_state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    # clip4clip trains a copy; every other method runs on the very tensors that it is given.
    assert (model.clip is clip.model) == (method != "clip4clip")
    for name, tensor in load_clip("tiny").model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("method", ["stop", "zero-shot", "vpt-deep", "clip4clip"])
def test_context_tokens_are_trained_with_every_method_that_reads_texts(method: Method) -> None:
    config, clip = replace(CONFIG, method=method, context_tokens=3), load_clip("tiny")
    seed_weights(config.seed)
    before = build_method(config, load_clip("tiny"), 3).prompt_state_dict()
    trainer = _trainer(config, clip=clip)
    _run(trainer)
    after = trainer.model.prompt_state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    for name, tensor in load_clip("tiny").model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], tensor), name
    # What is evaluated are the texts as they are now, not as they were when training began.
    other = build_method(config, load_clip("tiny"), 3)
    other.load_prompt_state_dict(after)
    clips = MemoryClips()
    again = Recognition(other, config, clips, ClassTexts(other, CLASSES)).measure(clips)
    assert trainer.objective.measure(clips).rows == again.rows


def test_the_frames_of_an_epoch_are_those_that_it_is_to_be_shown() -> None:
    plain, other = _trainer(CONFIG), _trainer(CONFIG)
    other.shown = lambda epoch: MemoryClips(seed=7 + epoch)  # the usual ones in the first epoch
    ours, theirs = ([s.loss for s in _run(one)] for one in (other, plain))
    epoch = plain.steps_per_epoch
    assert ours[:epoch] == theirs[:epoch]
    assert ours[epoch] != theirs[epoch]


def test_training_lowers_the_loss_on_what_it_sees() -> None:
    _, steps = _train(replace(CONFIG, epochs=30))
    first, last = ([s.loss for s in part] for part in (steps[:3], steps[-3:]))
    assert sum(last) < 0.7 * sum(first)


def test_a_loss_that_is_no_number_ends_the_training_and_names_its_clips() -> None:
    trainer = _trainer(CONFIG)
    with torch.no_grad():
        next(iter(trainer.model.trainable().values())).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"step 0.*clip \d"):
        next(trainer.steps(0))


@pytest.mark.parametrize("clip_norm", [1.0, 1e9])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_gradient_that_is_no_number_ends_the_training_before_it_moves_a_weight(
    clip_norm: float, bad: float, epochs: int
) -> None:
    trainer = _trainer(replace(CONFIG, clip_norm=clip_norm, epochs=epochs))
    last = trainer.steps_per_epoch - 1  # no loss of a later step would tell
    _run(trainer, last=last)
    before = trainer.model.prompt_state_dict()
    average, moments = trainer.average.weights(), trainer.optimizer.state_dict()["state"]
    steps = {number: float(values["step"]) for number, values in moments.items()}
    weight = next(iter(trainer.model.trainable().values()))
    weight.register_hook(lambda gradient: torch.full_like(gradient, bad))
    with pytest.raises(DivergedError, match=rf"the norm .* {bad} at step {last}; .*clip \d"):
        _run(trainer, first=last)
    after = trainer.model.prompt_state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(average[n], w) for n, w in trainer.average.weights().items())
    moments = trainer.optimizer.state_dict()["state"]
    assert {number: float(values["step"]) for number, values in moments.items()} == steps


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_taken_up_in_mid_epoch_ends_with_the_same_bits(ema: float) -> None:
    config = replace(CONFIG, ema=ema, stop=replace(SMALL, dropout=0.5))
    unbroken = _trainer(config)
    _run(unbroken, last=5)
    before = _trainer(config)
    _run(before, last=4)  # of three steps an epoch
    after = _trainer(replace(config))
    torch.manual_seed(99)  # another process has another random state
    after.model.load_prompt_state_dict(before.model.prompt_state_dict())
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    after.average.load(before.average.average)
    _run(after, first=4, last=5)
    ours, theirs = after.average.weights(), unbroken.average.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("task", ["recognition", "retrieval"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(
    task: Task, micro_batch: int
) -> None:
    whole, parts = (_gradient(_trainer(CONFIG, task, size)) for size in (None, micro_batch))
    _assert_equal_gradients(parts, whole)


Gradient = tuple[float, torch.Tensor]
"""Loss, and all gradients in one vector, of the first step."""


def _gradient(trainer: Trainer) -> Gradient:
    batch = epoch_batches(len(trainer.clips), trainer.config, 0)[0]
    share = list(my_share(batch))
    trainer.model.train()
    loss, _ = trainer._backward(0, batch, share, trainer.clips.read(share))
    parameters = list(trainer.model.trainable().values())
    sum_gradients(parameters)
    parts = [p.grad.flatten() for p in parameters if p.grad is not None]
    return loss, torch.cat(parts)


def _assert_equal_gradients(ours: Gradient, theirs: Gradient) -> None:
    """Up to float32 rounding, every element."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    largest = theirs[1].abs().max().item()
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-5 * largest)


Shared = dict[str, tuple[Gradient, list[float]]]


def _shared(rank: int) -> Shared:
    """The first gradient and the loss curve of each task, retrieval in micro-batches."""
    del rank
    kinds: tuple[tuple[Task, int | None], ...] = (("recognition", None), ("retrieval", 1))
    return {
        task: (
            _gradient(_trainer(CONFIG, task, size)),
            [s.loss for s in _run(_trainer(CONFIG, task, size), last=4)],
        )
        for task, size in kinds
    }


def test_four_processes_have_the_gradient_and_loss_curve_of_one(tmp_path: Path) -> None:
    alone = _shared(0)
    for process in run_together(_shared, 4, tmp_path):
        for task, (gradient, curve) in process.items():
            _assert_equal_gradients(gradient, alone[task][0])
            # Adam takes the rounding of a tiny gradient for a direction: the first steps tell.
            assert curve[:2] == pytest.approx(alone[task][1][:2], rel=1e-4), task
            assert curve == pytest.approx(alone[task][1], rel=2e-2), task


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_the_spatial_layers_move_at_their_own_rate(rate: float) -> None:
    config = replace(CONFIG, spatial_rate=rate, weight_decay=0.0, warmup_steps=0, clip_norm=1e9)
    trainer = _trainer(config)
    before = trainer.model.prompt_state_dict()
    (step,) = _run(trainer, last=1)
    for name, now in trainer.model.prompt_state_dict().items():
        # The first step of Adam is the rate itself, wherever the gradient is not tiny.
        expected = step.learning_rate * (rate if ".spatial." in name else 1.0)
        assert (now - before[name]).abs().max().item() == pytest.approx(expected, rel=1e-2), name


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    trainer = _trainer(replace(CONFIG, clip_norm=1e-3))
    (step,) = _run(trainer, last=1)
    parts = [p.grad for p in trainer.model.trainable().values() if p.grad is not None]
    assert step.gradient_norm > 1e-3
    assert torch.cat([part.flatten() for part in parts]).norm().item() == pytest.approx(
        1e-3, rel=1e-4
    )


@pytest.mark.parametrize("method", ["stop", "stop-static"])
def test_activations_computed_twice_change_no_bit(method: Method) -> None:
    config = replace(CONFIG, method=method, stop=replace(SMALL, dropout=0.5))
    ends = []
    for twice in (False, True):
        trainer = _trainer(config)
        assert isinstance(trainer.model, PromptedModel)
        trainer.model.checkpoint_activations = twice
        _run(trainer, last=3)
        ends.append(trainer.model.prompt_state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_compiled_model_has_the_gradient_of_one_that_is_not() -> None:
    config = replace(CONFIG, stop=replace(SMALL, depth=1))
    plain, compiled = _trainer(config), _trainer(config)
    # The traced graph is that of any backend; this one takes no minutes.
    encode = torch.compile(compiled.model.encode_video, backend="eager")
    compiled.model.encode_video = encode  # type: ignore[method-assign]
    _assert_equal_gradients(_gradient(compiled), _gradient(plain))


def test_a_pause_is_asked_for_by_one_and_told_to_all() -> None:
    trainer = _trainer(CONFIG)
    trainer.asks = lambda: True
    assert next(trainer.steps(0)).asked
    trainer.asks = lambda: False
    assert not next(trainer.steps(1)).asked


@pytest.mark.parametrize("room", [0, 1, 2])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, lambda text: RuntimeError(f"DefaultCPUAllocator: {text}")]
)
def test_too_large_a_batch_says_how_many_clips_would_fit(
    room: int, error: Callable[[str], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(CONFIG)
    embed = trainer.objective.outputs

    def small_device(frames, clips, epoch):  # type: ignore[no-untyped-def]
        if len(frames) > room:
            raise error("tried to allocate 1 GiB")
        return embed(frames, clips, epoch)

    monkeypatch.setattr(trainer.objective, "outputs", small_device)
    told = f"--micro-batch {room} " if room else "not even one clip of 3 frames"
    with pytest.raises(OutOfMemory, match=told):
        next(trainer.steps(0))


def test_another_error_of_a_step_is_not_taken_for_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = _trainer(CONFIG)

    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer.objective, "outputs", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        next(trainer.steps(0))


def test_the_average_follows_the_weights_and_gives_them_back() -> None:
    trainer = _trainer(replace(CONFIG, ema=0.5))
    name, weight = next(iter(trainer.model.trainable().items()))
    expected = weight.detach().clone()
    for number, step in enumerate(trainer.steps(0)):
        decay = min(0.5, (step.step + 1) / (step.step + 10))
        expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(trainer.average.average[name], expected)
        assert number == step.step
    trained = weight.detach().clone()
    with trainer.average.in_place():
        assert torch.equal(weight, trainer.average.average[name])
    assert torch.equal(weight, trained)


def test_each_step_has_the_epoch_and_the_random_numbers_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, seen = _trainer(replace(CONFIG, epochs=3)), []
    embed = trainer.objective.outputs

    def note(frames, clips, epoch):  # type: ignore[no-untyped-def]
        seen.append((epoch, torch.initial_seed()))
        return embed(frames, clips, epoch)

    monkeypatch.setattr(trainer.objective, "outputs", note)
    _run(trainer)
    epochs, seeds = zip(*seen, strict=True)
    assert epochs == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    assert len(set(seeds)) == 9


def test_no_two_parts_of_trainings_drop_out_alike() -> None:
    seeds = set()
    for case in itertools.product(range(4), range(12), range(6)):
        training._seed_dropout(*case)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 4 * 12 * 6
