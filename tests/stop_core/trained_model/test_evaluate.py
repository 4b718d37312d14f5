"""A model is evaluated on any cache: other classes, several views, in parts that are kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stop_core.cache import FrameCache, View
from stop_core.cache.views import several_views
from stop_core.clip.loading import load_clip
from stop_core.model.methods import build_method
from stop_core.settings.class_templates import find_templates
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.stop import StopConfig
from stop_core.trained_model import evaluate as module
from stop_core.trained_model.evaluate import evaluate, mean_logits
from stop_core.trained_model.files import (
    Provenance,
    label_classes,
    refuse_other_classes,
    templates_for,
)
from stop_core.trained_model.frames import Preprocessing
from stop_core.trained_model.model import TrainedModel, tower_facts
from tests.caches import write_cache

SMALL = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4)


def _model(method: str = "stop", labels: tuple[str, ...] = ("red", "blue")) -> TrainedModel:
    config = ExperimentConfig(method=method, stop=SMALL, batch_size=2, templates=("a {}",))
    torch.manual_seed(0)
    clip = load_clip("tiny")
    facts = tower_facts(clip)
    model = build_method(config, clip, len(labels))
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape)
    how = Preprocessing(2, 32, facts.mean, facts.std)
    origin = Provenance(facts.fingerprint, dataset="colours")
    return TrainedModel(config, label_classes(labels, ("a {}",)), how, origin, model.eval())


@pytest.fixture
def cache(hmdb51_root: Path, tmp_path: Path) -> FrameCache:
    """4 test clips of ride_bike and wave, with 5 frames that are wider than high."""
    folder = write_cache("hmdb51", hmdb51_root, tmp_path / "c", frames=5, size=32, crop="none")
    return FrameCache(folder)


def test_other_classes_are_read_by_the_text_tower(cache: FrameCache, tmp_path: Path) -> None:
    trained = _model()
    templates = templates_for(trained, cache.manifest)
    assert templates == find_templates(("default",), "hmdb51")
    found = evaluate(trained, cache, "test", [View(2, 32)], tmp_path, templates=templates)
    clips = cache.split("test")
    there = trained.with_labels(("ride_bike", "wave"), templates)
    logits = torch.cat([there.logits(clips.read([n, n + 1], View(2, 32))) for n in (0, 2)])
    assert found.rows["video_id"] == clips.video_ids
    assert found.rows["label"] == clips.labels.tolist()
    assert found.rows["predicted"] == logits.argmax(1).tolist()
    assert found.rows["probability"] == logits.softmax(1).amax(1).tolist()


def test_the_training_s_own_dataset_keeps_its_templates(cache: FrameCache) -> None:
    trained = _model()
    own = replace(trained, provenance=replace(trained.provenance, dataset="hmdb51"))
    assert templates_for(own, cache.manifest) == ("a {}",)
    assert templates_for(own, cache.manifest, ("one {}",)) == ("one {}",)


def test_learned_weights_for_classes_suit_only_the_same_classes(
    cache: FrameCache, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="linear-probe has learned weights for each class of col"):
        refuse_other_classes(_model("linear-probe"), cache.manifest)
    refuse_other_classes(_model("stop"), cache.manifest)
    same = _model("linear-probe", ("ride_bike", "wave"))
    found = evaluate(same, cache, "test", [View(2, 32)], tmp_path, templates=("{}",))
    assert set(found.rows["label"]) == {0, 1}


def test_a_base_to_novel_model_is_measured_on_each_half_of_its_own_classes(
    cache: FrameCache, tmp_path: Path
) -> None:
    trained = _model(labels=("wave",))
    base = replace(trained.config, protocol=ProtocolConfig(classes="base"))
    trained = replace(trained, config=base)
    views = several_views("2x3", 2, 32, cache.manifest.config)
    other = evaluate(trained, cache, "test", views, tmp_path, templates=("a {}",))
    assert "top1" in other.metrics, "these are the classes of another dataset"
    trained = replace(trained, provenance=replace(trained.provenance, dataset="hmdb51"))
    found = evaluate(trained, cache, "test", views, tmp_path, templates=("a {}",))
    # There is one class in each half.
    assert found.metrics == {"base_top1": 1.0, "novel_top1": 1.0, "harmonic_mean": 1.0}
    assert found.rows["part"] == ["base" if n == 1 else "novel" for n in found.rows["label"]]
    whole = trained.with_labels(cache.manifest.class_names, ("a {}",))
    both = evaluate(whole, cache, "test", views[:1], tmp_path, templates=("a {}",))
    assert "top1" in both.metrics, "all classes are base classes"


def test_several_views_are_the_mean_of_their_probabilities(
    cache: FrameCache, tmp_path: Path
) -> None:
    trained = _model().with_labels(("ride_bike", "wave"), ("a {}",))
    views = several_views("2x3", 2, 32, cache.manifest.config)
    found = evaluate(trained, cache, "test", views, tmp_path, templates=("a {}",))
    clips = cache.split("test")
    each = [trained.class_probabilities(clips.read(range(4), view)).double() for view in views]
    assert len(each) == 6
    assert not torch.equal(each[0], each[5])
    mean_MC = torch.stack(each).mean(0)
    assert found.rows["predicted"] == mean_MC.argmax(1).tolist()
    assert found.rows["probability"] == pytest.approx(mean_MC.amax(1).tolist(), abs=1e-6)


def test_the_mean_of_one_view_is_the_view_itself() -> None:
    logits = torch.randn(3, 4)
    assert mean_logits([logits]) is logits
    mean = mean_logits([logits, 3 * logits]).softmax(1)
    expected = (logits.double().softmax(1) + (3 * logits).double().softmax(1)) / 2
    assert torch.allclose(mean, expected, rtol=1e-12)


def test_finished_parts_are_not_computed_again(
    cache: FrameCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCHES_OF_A_PART", 1)  # two parts for each view
    views = several_views("2x1", 2, 32, cache.manifest.config)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    trained = _model()
    whole = evaluate(trained, cache, "test", views, tmp_path, templates=("a {}",))

    ran, done = [], []
    run_over = module.run_over

    def interrupted(*arguments: object) -> torch.Tensor:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(1)
        return run_over(*arguments)  # type: ignore[arg-type]

    def again() -> module.Measured:
        folder = tmp_path / "broken"
        return evaluate(
            trained, cache, "test", views, folder, templates=("a {}",), on_part=done.append
        )

    monkeypatch.setattr(module, "run_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again()
    assert done == [2] * 3
    ran[:] = [0, 0]  # room for one more
    found = again()
    assert len(ran) == 3
    assert done == [2] * 7
    assert found.metrics == whole.metrics
    assert found.rows == whole.rows
