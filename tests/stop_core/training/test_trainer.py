"""Laws of training: every clip once per epoch, one result per seed, frozen means frozen."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.datasets.clip import Task
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.model.prompted import PromptedModel
from stop_core.model.tuned import TunedClip
from stop_core.model.video_model import VideoModel
from stop_core.runtime import gradient_sum
from stop_core.runtime.devices import OutOfMemory, seed_weights
from stop_core.runtime.distributed import my_share
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import StopConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training import trainer as training
from stop_core.training.clip_views import ShownClips
from stop_core.training.objectives import Objective, Recognition, Retrieval
from stop_core.training.order import epoch_batches
from stop_core.training.trainer import DivergedError, Step, Trainer, learning_rate_at
from tests.stop_core.memory_clips import MemoryClips
from tests.stop_core.processes import run_together

SMALL = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4)
RUNNING = replace(SMALL, normalize="running")
DRAWN = replace(RUNNING, choose="random")
CONFIG = ExperimentConfig(stop=SMALL, epochs=2, batch_size=4, warmup_steps=2)
TOWERS = replace(CONFIG, method="clip4clip")  # in several buckets
AUGMENTED = TrainingOptions(flip=True, randaugment=2, label_smoothing=0.1, mixup=0.5)
PAIRS = TrainingOptions(captions="every", flip=True, randaugment=1)
TRAINED = [name for name, method in METHODS.items() if method.trains]
CLASSES = [["a red shape"], ["a green shape"], ["a blue shape"]]


def _trainer(
    config: ExperimentConfig,
    task: Task = "recognition",
    micro_batch: int | None = None,
    clip: FrozenClip | None = None,
) -> Trainer:
    seed_weights(config.seed)
    model = build_method(config, clip or load_clip("tiny"), 3)
    clips = ShownClips(MemoryClips(), config, 32, is_trained=True)  # type: ignore[arg-type]
    objective: Objective = (
        Recognition(model, config, clips, ClassTexts(model, CLASSES))
        if task == "recognition"
        else Retrieval(model, config, clips, [])
    )
    return Trainer(model, config, clips, objective, shown=clips.in_epoch, micro_batch=micro_batch)


def test_every_epoch_reads_the_clips_of_the_training_if_no_others_are_given() -> None:
    given = _trainer(CONFIG)
    default = Trainer(given.model, CONFIG, given.clips, given.objective)
    assert default.shown(0) is default.shown(7) is given.clips
    assert given.shown(0) is not given.clips


def _run(trainer: Trainer, first: int = 0, last: int | None = None) -> list[Step]:
    """Runs the steps `first` to `last` - 1 of a training."""
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
def test_an_epoch_has_every_clip_once(clips: int, batch: int) -> None:
    batches = epoch_batches(clips, replace(CONFIG, batch_size=batch), epoch=0)
    assert sorted(clip for one in batches for clip in one) == list(range(clips))
    assert len(batches) == math.ceil(clips / batch)


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    order = epoch_batches(50, CONFIG, 1)
    assert epoch_batches(50, CONFIG, 1) == order
    assert epoch_batches(50, CONFIG, 2) != order
    assert epoch_batches(50, replace(CONFIG, seed=1), 1) != order


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(CONFIG, warmup_steps=5, learning_rate=1.0)
    rates = [learning_rate_at(step, 50, config) for step in range(50)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[0] == pytest.approx(0.2)
    assert learning_rate_at(50, 50, config) == pytest.approx(0)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_a_warmup_can_be_a_fraction_of_the_training(fraction: float) -> None:
    share = replace(CONFIG, warmup_steps=30, training=TrainingOptions(warmup=fraction))
    steps = replace(CONFIG, warmup_steps=round(50 * fraction))
    for step in range(50):
        assert learning_rate_at(step, 50, share) == learning_rate_at(step, 50, steps)


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 7])
def test_a_training_has_exactly_its_steps_and_ends_its_schedule_there(steps: int) -> None:
    options = TrainingOptions(steps=steps, warmup=0.0)
    config = replace(CONFIG, epochs=10, warmup_steps=30, training=options, method="vpt-shallow")
    trainer = _trainer(config)
    assert trainer.epochs == math.ceil(steps / 3)
    passes = [[step.step for step in trainer.steps(first)] for first in range(0, steps, 3)]
    assert passes == [list(range(n, min(n + 3, steps))) for n in range(0, steps, 3)]
    rates = [learning_rate_at(step, trainer.total_steps, config) for step in range(steps + 1)]
    assert rates[0] == config.learning_rate
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    longer = replace(config, training=replace(options, steps=steps + 1))
    assert learning_rate_at(steps, steps + 1, longer) > 0


def test_an_epoch_of_pairs_has_every_caption_of_every_clip_once() -> None:
    config, plain = replace(CONFIG, training=PAIRS), MemoryClips()
    trainer = _trainer(config, "retrieval")
    pairs = [(c, s) for c, some in zip(plain.video_ids, plain.captions, strict=True) for s in some]
    assert trainer.steps_per_epoch == math.ceil(len(pairs) / config.batch_size)
    assert isinstance(trainer.objective, Retrieval)
    orders = [epoch_batches(len(trainer.clips), config, epoch) for epoch in (0, 1)]
    assert orders[0] != orders[1]
    for epoch in (0, 1):
        seen = [
            (trainer.clips.video_ids[example], trainer.objective.caption(example, epoch))
            for batch in orders[epoch]
            for example in batch
        ]
        assert sorted(seen) == sorted(pairs)
    assert sum(step.clips for step in trainer.steps(0)) == len(pairs)


@pytest.mark.parametrize("method", TRAINED)
def test_biases_and_norms_can_be_left_out_of_the_weight_decay(method: str) -> None:
    options = TrainingOptions(adam_beta1=0.8, adam_beta2=0.98, adam_eps=1e-6, decay_biases=False)
    config = replace(CONFIG, method=method, weight_decay=0.2)
    for chosen in (TrainingOptions(), options):
        trainer = _trainer(replace(config, training=chosen))
        groups = trainer.optimizer.param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        rate = {id(p): group["share"] for group in groups for p in group["params"]}
        tensors = trainer.model.trainable()
        assert sum(len(group["params"]) for group in groups) == len(tensors) == len(decay)
        for name, tensor in tensors.items():
            is_small = tensor.ndim < 2 or name.endswith("bias")
            is_left_out = is_small and not chosen.decay_biases
            assert decay[id(tensor)] == (0.0 if is_left_out else 0.2), name
            assert rate[id(tensor)] == (config.spatial_rate if ".spatial." in name else 1.0)
        for group in groups:
            assert group["betas"] == (chosen.adam_beta1, chosen.adam_beta2)
            assert group["eps"] == chosen.adam_eps


@pytest.mark.parametrize("method", TRAINED)
def test_training_is_reproducible_and_moves_every_prompt_and_no_bit_of_clip(method: str) -> None:
    config, clip = replace(CONFIG, method=method, epochs=1), load_clip("tiny")
    original = copy.deepcopy(clip.model.state_dict())
    seed_weights(config.seed)
    before = build_method(config, clip, 3).prompt_state_dict()
    model, _ = _train(config, clip)
    after = model.prompt_state_dict()
    # The choice of pixels in the published code has no gradient.
    learned = [name for name in before if not name.startswith("pixels.choice.")]
    assert all(not torch.equal(before[name], after[name]) for name in learned)
    # Methods that train weights of CLIP train a copy; every other uses the tensors that it gets.
    assert (model.clip is clip.model) == (not isinstance(model, TunedClip))
    for name, tensor in original.items():
        assert torch.equal(clip.model.state_dict()[name], tensor), name
    again = _train(config, clip)[0].prompt_state_dict()
    assert after.keys() == again.keys()
    assert all(torch.equal(after[name], again[name]) for name in after)
    other = _train(replace(config, seed=1), clip)[0].prompt_state_dict()
    assert any(not torch.equal(after[name], other[name]) for name in after)


@pytest.mark.parametrize("method", ["stop", "zero-shot", "vpt-deep", "clip4clip"])
def test_context_tokens_are_trained_with_every_method_that_reads_texts(method: str) -> None:
    config, clip = replace(CONFIG, method=method, context_tokens=3, epochs=1), load_clip("tiny")
    seed_weights(config.seed)
    before = build_method(config, load_clip("tiny"), 3).prompt_state_dict()
    trainer = _trainer(config, clip=clip)
    _run(trainer)
    after = trainer.model.prompt_state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    for name, tensor in load_clip("tiny").model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], tensor), name
    # Evaluation uses the trained texts, not those from the start of the training.
    other = build_method(config, load_clip("tiny"), 3)
    other.load_prompt_state_dict(after)
    clips = MemoryClips()
    again = Recognition(other, config, clips, ClassTexts(other, CLASSES)).measure(clips)
    assert trainer.objective.measure(clips).rows == again.rows


def test_an_epoch_reads_the_clips_that_shown_returns() -> None:
    plain, other = _trainer(CONFIG), _trainer(CONFIG)
    other.shown = lambda epoch: MemoryClips(seed=7 + epoch)  # the default clips in the first epoch
    ours, theirs = ([s.loss for s in _run(one)] for one in (other, plain))
    epoch = plain.steps_per_epoch
    assert ours[:epoch] == theirs[:epoch]
    assert ours[epoch] != theirs[epoch]


def test_training_lowers_the_loss_on_its_clips() -> None:
    _, steps = _train(replace(CONFIG, epochs=12, learning_rate=1e-2))
    first, last = ([s.loss for s in part] for part in (steps[:3], steps[-3:]))
    assert sum(last) < 0.7 * sum(first)


def test_a_loss_that_is_not_finite_ends_the_training_and_names_its_clips() -> None:
    trainer = _trainer(CONFIG)
    with torch.no_grad():
        next(iter(trainer.model.trainable().values())).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"step 0.*clip \d"):
        next(trainer.steps(0))


@pytest.mark.parametrize("clip_norm", [1.0, 1e9])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_training_before_it_moves_a_weight(
    clip_norm: float, bad: float
) -> None:
    trainer = _trainer(replace(CONFIG, clip_norm=clip_norm, epochs=1))
    last = trainer.total_steps - 1  # no later step could detect it by its loss
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


@pytest.mark.parametrize(
    ("method", "ema", "task", "options", "stop"),
    [
        *((method, 0.0, "recognition", TrainingOptions(), SMALL) for method in TRAINED),
        ("stop", 0.9, "recognition", replace(AUGMENTED, decay_biases=False), SMALL),
        ("stop", 0.0, "retrieval", PAIRS, SMALL),
        ("stop", 0.9, "recognition", TrainingOptions(), DRAWN),
    ],
)
def test_a_training_resumed_in_mid_epoch_ends_with_the_same_bits(
    method: str, ema: float, task: Task, options: TrainingOptions, stop: StopConfig
) -> None:
    stop = replace(stop, dropout=0.5)
    config = replace(CONFIG, method=method, ema=ema, stop=stop, training=options)
    unbroken = _trainer(config, task)
    _run(unbroken, last=5)
    before = _trainer(config, task)
    _run(before, last=4)  # of three steps an epoch, or five of pairs
    after = _trainer(replace(config), task)
    torch.manual_seed(99)  # another process has another random state
    after.model.load_prompt_state_dict(before.model.prompt_state_dict())
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    after.average.load(before.average.average)
    _run(after, first=4, last=5)
    ours, theirs = after.average.weights(), unbroken.average.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("recognition", TrainingOptions()),
        ("recognition", AUGMENTED),
        ("retrieval", TrainingOptions()),
        ("retrieval", PAIRS),
    ],
)
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(
    task: Task, options: TrainingOptions, micro_batch: int
) -> None:
    config = replace(CONFIG, training=options)
    whole, parts = (_gradient(_trainer(config, task, size)) for size in (None, micro_batch))
    _assert_equal_gradients(parts, whole)


Gradient = tuple[float, torch.Tensor]
"""Loss, and all gradients in one vector, of the first step."""


def _gradient(trainer: Trainer) -> Gradient:
    batch = epoch_batches(len(trainer.clips), trainer.config, 0)[0]
    share = list(my_share(batch))
    trainer.model.train()
    loss, _ = trainer._backward(0, batch, share, trainer.shown(0).read(share)).tolist()
    parameters = trainer.model.trainable().values()
    parts = [p.grad.flatten() for p in parameters if p.grad is not None]
    return loss, torch.cat(parts)


def _assert_equal_gradients(ours: Gradient, theirs: Gradient) -> None:
    """Up to float32 rounding, every element."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    largest = theirs[1].abs().max().item()
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-5 * largest)


Shared = dict[str, tuple[Gradient, list[float]]]


def _running_scales(trainer: Trainer) -> list[torch.Tensor]:
    """The sums of the running scales of all blocks."""
    learned = trainer.model.learned()
    return [value[0] for name, value in learned.items() if name.endswith(".running")]


def _shared(rank: int) -> Shared:
    """Returns the first gradient and the loss curve of each task, retrieval in micro-batches."""
    del rank
    kinds: tuple[tuple[str, Task, ExperimentConfig, int | None], ...] = (
        ("recognition", "recognition", CONFIG, None),
        ("augmented", "recognition", replace(CONFIG, training=AUGMENTED), None),
        ("running", "recognition", replace(CONFIG, stop=RUNNING), None),
        ("retrieval", "retrieval", CONFIG, 1),
        ("pairs", "retrieval", replace(CONFIG, training=PAIRS, batch_size=9), 1),
        ("towers", "recognition", TOWERS, 1),
        ("towers and texts", "retrieval", TOWERS, None),
    )
    gradient_sum.BUCKET_BYTES = 2**18
    found: Shared = {}
    for name, task, config, size in kinds:
        trainer = _trainer(config, task, size)
        found[name] = _gradient(trainer), [s.loss for s in _run(trainer, last=3)]
        found[name][1].extend(scale.item() for scale in _running_scales(trainer))
    return found


@pytest.mark.slow
def test_three_processes_have_the_gradient_and_loss_curve_of_one(tmp_path: Path) -> None:
    # The third step has two clips or one pair, so that the share of a process is empty.
    one = _shared(0)
    assert len(one["running"][1]) == 3 + 4, "four blocks"
    for process in run_together(_shared, 3, tmp_path):
        for task, (gradient, curve) in process.items():
            _assert_equal_gradients(gradient, one[task][0])
            # Adam amplifies the rounding of tiny gradients, so only the first steps are close.
            assert curve[:2] == pytest.approx(one[task][1][:2], rel=1e-4), task
            assert curve == pytest.approx(one[task][1], rel=2e-2), task


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_the_spatial_layers_have_their_own_learning_rate(rate: float) -> None:
    config = replace(CONFIG, spatial_rate=rate, weight_decay=0.0, warmup_steps=0, clip_norm=1e9)
    trainer = _trainer(config)
    before = trainer.model.prompt_state_dict()
    (step,) = _run(trainer, last=1)
    for name, now in trainer.model.prompt_state_dict().items():
        # The first step of Adam is the rate itself, wherever the gradient is not tiny.
        expected = step.learning_rate * (rate if ".spatial." in name else 1.0)
        assert (now - before[name]).abs().max().item() == pytest.approx(expected, rel=1e-2), name


def test_a_gradient_is_clipped_to_clip_norm() -> None:
    trainer = _trainer(replace(CONFIG, clip_norm=1e-3))
    (step,) = _run(trainer, last=1)
    parts = [p.grad for p in trainer.model.trainable().values() if p.grad is not None]
    assert step.gradient_norm > 1e-3
    assert torch.cat([part.flatten() for part in parts]).norm().item() == pytest.approx(
        1e-3, rel=1e-4
    )


@pytest.mark.parametrize("method", ["stop", "stop-static"])
def test_checkpointing_activations_changes_no_bit(method: str) -> None:
    config = replace(CONFIG, method=method, stop=replace(SMALL, dropout=0.5))
    ends = []
    for checkpoints in (False, True):
        trainer = _trainer(config)
        assert isinstance(trainer.model, PromptedModel)
        trainer.model.checkpoint_activations = checkpoints
        _run(trainer, last=2)
        ends.append(trainer.model.prompt_state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.slow
def test_a_compiled_model_has_the_same_gradient(make_clip: Callable[..., FrozenClip]) -> None:
    config, clip = replace(CONFIG, stop=replace(SMALL, depth=1)), make_clip(patch=8, grid=4)
    plain, compiled = _trainer(config, clip=clip), _trainer(config, clip=clip)
    # All backends get the same traced graph; this one does not need minutes.
    encode = torch.compile(compiled.model.encode_video, backend="eager")
    compiled.model.encode_video = encode  # type: ignore[method-assign]
    _assert_equal_gradients(_gradient(compiled), _gradient(plain))


def test_a_step_reports_the_request_for_a_pause() -> None:
    trainer = _trainer(CONFIG)
    assert not next(trainer.steps(0)).pause
    trainer.wants_pause = lambda: True
    assert next(trainer.steps(1)).pause


@pytest.mark.parametrize("room", [0, 1, 2])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, lambda text: RuntimeError(f"DefaultCPUAllocator: {text}")]
)
def test_a_batch_that_is_too_large_is_refused_with_the_number_of_clips_that_fit(
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


def test_other_errors_of_a_step_are_not_reported_as_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = _trainer(CONFIG)

    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer.objective, "outputs", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        next(trainer.steps(0))


def test_the_average_follows_the_weights_and_restores_them() -> None:
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


def test_a_training_that_an_earlier_version_began_has_the_same_order_and_random_numbers() -> None:
    training._seed_dropout(3, 7, 2)
    assert torch.initial_seed() == ((3 * 1_000_003 + 8) * 1_009 + 0) * 1_013 + 2
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3 * 1_000_003 + 2))
    assert epoch_batches(50, replace(CONFIG, seed=3, batch_size=50), 2) == [order.tolist()]
