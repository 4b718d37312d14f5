"""Laws of the objectives: captions are drawn fairly, and metrics follow from their rows."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from stop_core.clip.loading import load_clip
from stop_core.evaluation.recognition import harmonic_mean
from stop_core.evaluation.run_over import TextBank
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.stop import StopConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training.augmentation import mixing
from stop_core.training.clip_views import ShownClips
from stop_core.training.objectives import (
    BaseToNovel,
    Objective,
    Recognition,
    Retrieval,
    make_objective,
)
from tests.stop_core.memory_clips import MemoryClips
from tests.stop_core.training.test_losses import slow_info_nce

CONFIG = ExperimentConfig(stop=StopConfig(n_s=2, spatial_width=4, temporal_width=4))
CLASSES = ("a red shape", "a green shape", "a blue shape")


def _recognition(model: VideoModel, config: ExperimentConfig = CONFIG) -> Objective:
    texts = ClassTexts(model, [[name] for name in CLASSES])
    return Recognition(model, config, MemoryClips(), texts)


def _retrieval(model: VideoModel, config: ExperimentConfig = CONFIG) -> Objective:
    return Retrieval(model, config, MemoryClips(), [])


@pytest.fixture(scope="module")
def model() -> VideoModel:
    torch.manual_seed(0)
    return build_method(CONFIG, load_clip("tiny"), 3)


def test_a_caption_depends_on_seed_epoch_and_clip_and_each_is_drawn(
    model: VideoModel,
) -> None:
    clips = MemoryClips()
    objective, again = (Retrieval(model, CONFIG, clips, []) for _ in range(2))
    other = Retrieval(model, replace(CONFIG, seed=1), clips, [])
    drawn = [objective.caption(2, epoch) for epoch in range(300)]
    assert drawn == [again.caption(2, epoch) for epoch in range(300)]
    assert drawn != [other.caption(2, epoch) for epoch in range(300)]
    # A training that an earlier version began shows the same captions.
    captions = clips.captions[2]
    for epoch in range(20):
        text = f"{CONFIG.seed}/{epoch}/2".encode()
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        assert drawn[epoch] == captions[number % len(captions)]
    counts = Counter(drawn)
    assert set(counts) == set(clips.captions[2])
    assert min(counts.values()) > 300 / len(counts) / 2


def test_clips_with_the_same_caption_are_positives(model: VideoModel) -> None:
    clips = MemoryClips(4)
    clips.captions = [("a red shape",), ("a red shape",), ("a red shape",), ("a red shape",)]
    objective = Retrieval(model, CONFIG, clips, [])
    chosen = range(4)
    outputs = objective.outputs(clips.read(chosen), chosen, 0)
    uniform = torch.log(torch.tensor(4.0))  # every text is correct
    text_side = objective.loss(outputs, chosen, 0, 4)
    clips.captions = [(f"a red shape {i}",) for i in range(4)]
    different = Retrieval(model, CONFIG, clips, [])
    apart = different.loss(different.outputs(clips.read(chosen), chosen, 0), chosen, 0, 4)
    assert text_side < uniform + 0.1 < 4 * apart


def test_with_every_caption_a_text_is_a_positive_of_each_video_that_it_describes(
    model: VideoModel,
) -> None:
    config = replace(CONFIG, training=TrainingOptions(captions="every"))
    clips = MemoryClips(5)
    clips.captions = [("one", "two"), ("two",), ("three", "one"), ("four",), ("three",)]
    pairs = ShownClips(clips, config, 32, is_trained=True)  # type: ignore[arg-type]
    objective = Retrieval(model, config, pairs, [])
    # Clip 0 twice; "two" of both its clips; and "one" of clip 2, which describes clip 0, too.
    for batch in ([0, 1, 2, 4, 5], [1, 2, 6], [0, 6, 3], [5]):
        texts = [pairs.captions[example][0] for example in batch]
        videos = [int(pairs.video_ids[example].split()[1]) for example in batch]
        belongs = [[text in clips.captions[video] for text in texts] for video in videos]
        outputs = objective.outputs(pairs.read(batch), batch, 0)
        video, text = outputs.detach().double().chunk(2, 1)
        expected = slow_info_nce(video, text, float(model.logit_scale), belongs)
        found = objective.loss(outputs, batch, 0, len(batch)).item()
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_targets_of_mixed_clips_are_the_weighted_labels_of_both(model: VideoModel) -> None:
    options = TrainingOptions(mixup=0.5, label_smoothing=0.1)
    config = replace(CONFIG, training=options)
    objective, clips = _recognition(model, config), MemoryClips()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    batch, expected = [3, 0, 7, 4], 0.0
    for row, clip in enumerate(batch):
        partner, weight = mixing(clip, len(clips), config, 5)
        for own, share in ((clip, weight), (partner, 1 - weight)):
            label = clips.labels[own : own + 1]
            term = F.cross_entropy(logits[row : row + 1], label, label_smoothing=0.1)
            expected += share * term.item() / 9
    assert objective.loss(logits, batch, 5, 9).item() == pytest.approx(expected, rel=1e-5)


def test_every_sentence_is_encoded_once(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = model.encode_text

    def count(texts: Sequence[str]) -> torch.Tensor:
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(model, "encode_text", count)
    train, val = MemoryClips(), MemoryClips(6, seed=8)
    objective = Retrieval(model, CONFIG, train, [val])
    objective.outputs(train.read([0, 1]), [0, 1], 0)
    objective.measure(val)
    objective.measure(val)
    words = [s for clips in (train, val) for captions in clips.captions for s in captions]
    assert sorted(set(encoded) - {"a"}) == sorted(set(words))
    assert max(Counter(encoded).values()) == 1
    rows = TextBank(model, words).rows(words[:3])
    torch.testing.assert_close(rows, encode(words[:3]), rtol=1e-5, atol=1e-6)


def test_the_metrics_of_retrieval_follow_from_its_rows(model: VideoModel) -> None:
    clips = MemoryClips()
    measured = Retrieval(model, CONFIG, clips, []).measure(clips)
    rows = pd.DataFrame(measured.rows)
    assert len(rows) == sum(len(captions) for captions in clips.captions) + len(clips)
    for direction in ("t2v", "v2t"):
        ranks = rows.loc[rows["direction"] == direction, "rank"]
        for k in (1, 5, 10):
            assert measured.metrics[f"{direction}_r{k}"] == pytest.approx((ranks <= k).mean())
        assert measured.metrics[f"{direction}_median_rank"] == pytest.approx(ranks.median())
    hits = rows[(rows["direction"] == "t2v") & (rows["rank"] == 1)]
    assert (hits["video_id"] == hits["found_video_id"]).all()


@pytest.mark.parametrize("objective", ["recognition", "retrieval"])
def test_metrics_do_not_depend_on_the_batch_size(model: VideoModel, objective: str) -> None:
    clips = MemoryClips()
    made: Objective = (
        Retrieval(model, CONFIG, clips, []) if objective == "retrieval" else _recognition(model)
    )
    whole = made.measure(clips)
    made.evaluation_batch = 3
    parts = made.measure(clips)
    assert parts.metrics == pytest.approx(whole.metrics)
    for name, column in parts.rows.items():
        expected = whole.rows[name]
        numeric = isinstance(column[0], float)
        assert column == (pytest.approx(expected, abs=1e-4) if numeric else expected), name


@pytest.mark.parametrize("make", [_recognition, _retrieval])
def test_the_outputs_of_an_empty_share_are_no_rows_of_the_same_width(
    model: VideoModel, make: Callable[[VideoModel], Objective]
) -> None:
    objective, clips = make(model), MemoryClips()
    one, none = objective.outputs(clips.read([0]), [0], 0), objective.no_outputs()
    assert none.shape == one[:0].shape
    assert (none.dtype, none.device) == (one.dtype, one.device)


def test_the_confusion_of_recognition_counts_its_rows(model: VideoModel) -> None:
    measured = _recognition(model).measure(MemoryClips())
    assert measured.confusion_CC is not None
    for true, predicted in zip(measured.rows["label"], measured.rows["predicted"], strict=True):
        measured.confusion_CC[true, predicted] -= 1
    assert not measured.confusion_CC.any()


@pytest.mark.parametrize("context_tokens", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_close_to_float32_and_trains(method: str, context_tokens: int) -> None:
    if context_tokens and (METHODS[method].prompts_text or not METHODS[method].reads_text):
        return  # refused
    config = replace(CONFIG, method=method, context_tokens=context_tokens)
    clips, chosen = MemoryClips(), range(4)
    torch.manual_seed(0)
    model = build_method(config, load_clip("tiny"), 3)
    for kind, most in ((_recognition, 1.0), (_retrieval, 0.05)):
        if kind is _retrieval and method == "linear-probe":
            continue
        exact, rounded = (
            kind(model, replace(config, precision=precision)).outputs(clips.read(chosen), chosen, 0)
            for precision in ("fp32", "bf16")
        )
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(exact, rounded, rtol=0, atol=most)
        if model.trainable():
            rounded.sum().backward()


def test_bfloat16_is_not_float32(model: VideoModel) -> None:
    clips, chosen = MemoryClips(), range(4)
    exact, rounded = (
        _retrieval(model, replace(CONFIG, precision=precision)).outputs(
            clips.read(chosen), chosen, 0
        )
        for precision in ("fp32", "bf16")
    )
    # Without this difference the test above could pass on a CPU that ignores autocast.
    assert not torch.equal(exact, rounded)


def test_probabilities_are_the_softmax_of_the_logits_and_have_no_gradient(
    model: VideoModel,
) -> None:
    objective, frames = _recognition(model), MemoryClips().frames[:2]
    found = objective.probabilities(frames)
    assert found is not None
    assert not found.requires_grad
    torch.testing.assert_close(found, objective.outputs(frames, [0, 1], 0).detach().softmax(-1))
    assert _retrieval(model).probabilities(frames) is None


@pytest.mark.parametrize(
    ("task", "classes", "kind"),
    [
        ("recognition", "all", Recognition),
        ("recognition", "base", BaseToNovel),
        ("retrieval", "all", Retrieval),
    ],
)
def test_task_and_protocol_determine_the_objective(
    model: VideoModel, task: str, classes: Any, kind: type[Objective]
) -> None:
    manifest = SimpleNamespace(task=task, class_names=CLASSES, class_words=CLASSES)
    config = replace(CONFIG, templates=("{}",), protocol=ProtocolConfig(classes=classes))
    splits = {"train": MemoryClips(), "val": MemoryClips()}
    assert type(make_objective(model, config, manifest, splits)) is kind  # type: ignore[arg-type]


def test_base_classes_are_trained_and_each_half_is_tested_among_its_own(model: VideoModel) -> None:
    clips, base = MemoryClips(), [0, 2]
    every = ClassTexts(model, [[name] for name in CLASSES])
    trained = ClassTexts(model, [[CLASSES[label]] for label in base])
    objective = BaseToNovel(base, model, CONFIG, clips, trained, every)
    own = [n for n, label in enumerate(clips.labels.tolist()) if label in base]
    logits = objective.outputs(clips.read(own), own, 0)
    assert logits.shape == (len(own), 2)
    expected = F.cross_entropy(logits, (clips.labels[own] > 0).long())
    assert objective.loss(logits, own, 0, len(own)).item() == pytest.approx(expected.item())
    measured = objective.measure(clips)
    all_MC = Recognition(model, CONFIG, clips, every).outputs(clips.read(range(10)), range(10), 0)
    base_right = all_MC[own][:, base].argmax(1) == (clips.labels[own] > 0)
    assert measured.metrics["base_top1"] == pytest.approx(base_right.float().mean().item())
    assert measured.metrics["novel_top1"] == 1.0, "there is one novel class"
    mean = harmonic_mean(measured.metrics["base_top1"], 1.0)
    assert measured.metrics["harmonic_mean"] == mean
    rows = pd.DataFrame(measured.rows)
    assert rows["part"].eq("base").tolist() == rows["label"].isin(base).tolist()
    assert rows["part"].eq("base").tolist() == rows["predicted"].isin(base).tolist()
    for part, part_rows in rows.groupby("part"):
        share = (part_rows["rank"] == 1).mean()
        assert share == pytest.approx(measured.metrics[f"{part}_top1"])
    assert measured.confusion_CC is not None
    assert int(measured.confusion_CC.diagonal().sum()) == int((rows["rank"] == 1).sum())
    assert objective.probabilities(clips.read([0])).shape == (1, 3)
