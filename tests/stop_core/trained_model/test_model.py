"""A loaded model equals the evaluated one, or it is refused."""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from stop_core.clip.loading import load_clip
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.runtime.devices import seed_weights
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import StopConfig
from stop_core.storage.atomic import write_sums
from stop_core.tiny.shipped import TINY_TOWERS, TinyTower
from stop_core.trained_model.files import (
    CARD,
    CONFIG_FILE,
    FILES,
    LABELS,
    PREPROCESSING,
    PROMPTS,
    PROVENANCE,
    ModelRecord,
    Provenance,
    find_model,
    label_classes,
    read_record,
)
from stop_core.trained_model.frames import Preprocessing
from stop_core.trained_model.model import TrainedModel, keep_model, tower_facts
from stop_core.training.objectives import Recognition, Retrieval
from stop_core.training.trainer import Trainer
from tests.stop_core import openai_format
from tests.stop_core.memory_clips import MemoryClips

SMALL = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4)
BASE = ExperimentConfig(
    stop=SMALL,
    epochs=1,
    batch_size=5,
    warmup_steps=0,
    learning_rate=0.01,
    templates=("a {}", "a video of a {}"),
)
NAMES = ("red_shape", "GreenShape", "blue shape")
CLIPS = MemoryClips()


def _variants() -> list[ExperimentConfig]:
    plain = [replace(BASE, method=method) for method in METHODS]
    text: list[str] = ["stop", "zero-shot", "clip4clip"]
    return [
        *plain,
        *(replace(BASE, method=method, context_tokens=2) for method in text),
        replace(BASE, ema=0.9),
        replace(BASE, precision="bf16"),
        replace(BASE, method="linear-probe", ema=0.5, precision="bf16"),
    ]


def _trained(config: ExperimentConfig) -> tuple[TrainedModel, Recognition, Trainer | None]:
    """Returns a model of two steps, its objective and its trainer."""
    seed_weights(config.seed)
    clip = load_clip(config.tower, config.pretrained)
    facts = tower_facts(clip)
    model = build_method(config, clip, len(NAMES))
    classes = label_classes(NAMES, config.templates)
    texts = ClassTexts(model, [label.sentences for label in classes])
    objective = Recognition(model, config, CLIPS, texts)
    trainer = Trainer(model, config, CLIPS, objective) if model.trainable() else None
    for _ in trainer.steps(0) if trainer else ():
        pass
    how = Preprocessing(3, 32, facts.mean, facts.std)
    origin = Provenance(facts.fingerprint, run="a run", dataset="noise", metrics={"val/top1": 0.5})
    return TrainedModel(config, classes, how, origin, model), objective, trainer


@pytest.mark.parametrize(
    "config",
    _variants(),
    ids=lambda c: f"{c.method}-{c.context_tokens}-{c.ema}-{c.precision}",
)
def test_a_loaded_model_repeats_the_evaluation_of_its_training(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    trained, objective, trainer = _trained(config)
    if trainer:
        trained.model.load_prompt_state_dict(trainer.average.weights())
    wanted = objective.measure(CLIPS).rows
    trained.save(tmp_path / "model")
    loaded = TrainedModel.load(tmp_path / "model")
    assert all(getattr(loaded, f.name) == getattr(trained, f.name) for f in fields(ModelRecord))
    assert loaded.labels == NAMES
    found = loaded.class_probabilities(CLIPS.frames)
    best, predicted = found.max(-1)
    assert predicted.tolist() == wanted["predicted"]
    assert best.tolist() == wanted["probability"]
    own = found.gather(1, CLIPS.labels[:, None])[:, 0]
    assert own.tolist() == wanted["label_probability"]


@pytest.mark.parametrize("method", ["stop", "clip4clip"])
def test_a_loaded_retrieval_model_repeats_its_evaluation(method: str, tmp_path: Path) -> None:
    config = replace(BASE, method=method, context_tokens=2)
    trained, _, _ = _trained(config)
    trained = replace(trained, classes=())
    trained.save(tmp_path / "model")
    loaded = TrainedModel.load(tmp_path / "model")
    assert loaded.labels is None
    with pytest.raises(ValueError, match="has no classes"):
        loaded.class_probabilities(CLIPS.frames)
    similarity = loaded.embed_texts(["a red shape at 0"]) @ loaded.embed_videos(CLIPS.frames).T
    rows = Retrieval(trained.model, config, CLIPS, []).measure(CLIPS).rows
    at = rows["caption"].index("a red shape at 0")
    assert similarity.max().item() == pytest.approx(rows["found_similarity"][at], abs=1e-6)
    assert loaded.embed_texts([]).shape == (0, similarity.new_empty(64).numel())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained, _, _ = _trained(BASE)
    folder = tmp_path_factory.mktemp("run") / "model"
    trained.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a complete model, to damage it."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_saved_folder_has_all_files_and_nothing_else(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    assert find_model(saved.parent) == find_model(saved) == saved


def test_saving_again_replaces_the_folder(folder: Path) -> None:
    (folder / "stray").write_text("left by a kill")
    record = read_record(folder)
    prompts = folder.parent / "prompts"
    shutil.copyfile(folder / PROMPTS, prompts)
    other = replace(record, provenance=replace(record.provenance, run="another run"))
    keep_model(folder, other, prompts)
    assert read_record(folder) == other
    assert not (folder / "stray").exists()


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_named_safetensors_is_refused_and_not_run(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    evil = _Evil(tmp_path / "ran")
    if kind == "pickle":
        (folder / PROMPTS).write_bytes(pickle.dumps(evil))
    else:
        torch.save({"weights": evil}, folder / PROMPTS)
    with pytest.raises(ValueError, match=r"safetensors is not as it was written, .*SHA256SUMS"):
        TrainedModel.load(folder)
    write_sums(folder, without=[CARD])
    with pytest.raises(ValueError, match=r"cannot read .* as safetensors .* can run code"):
        TrainedModel.load(folder)
    assert not evil.target.exists()


def test_a_config_with_yaml_tags_is_refused(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    (folder / CONFIG_FILE).write_text(f"method: !!python/object/apply:os.mkdir [{target}]")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read"):
        TrainedModel.load(folder)
    assert not target.exists()


@pytest.mark.parametrize("name", [CONFIG_FILE, LABELS, PREPROCESSING, PROVENANCE])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_a_damaged_file_is_refused_by_its_name(folder: Path, name: str, text: str) -> None:
    if (name, text) == (CONFIG_FILE, "{}"):
        text = "method: walking"
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        TrainedModel.load(folder)


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values) if path.suffix == ".yaml" else json.dumps(values))
    write_sums(path.parent, without=[CARD])


@pytest.mark.parametrize("name", sorted({*FILES} - {CARD}))
def test_any_change_of_a_file_except_the_card_is_refused(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for at in (len(whole) // 3, len(whole) - 2):
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((ValueError, OSError), match=str(folder)):
            TrainedModel.load(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=str(folder)):
        TrainedModel.load(folder)
    (folder / name).write_bytes(whole)
    (folder / CARD).write_text("What I think of it")
    TrainedModel.load(folder)


def test_the_command_in_the_refusal_accepts_the_change(folder: Path) -> None:
    values = json.loads((folder / LABELS).read_text())
    (folder / LABELS).write_text(json.dumps(values))  # the same without line breaks
    with pytest.raises(ValueError, match="copy the whole folder again") as refused:
        TrainedModel.load(folder)
    subprocess.run(str(refused.value).split("`")[1], shell=True, check=True)
    TrainedModel.load(folder)


def test_other_weights_of_the_tower_are_refused(folder: Path) -> None:
    _edit(folder / PROVENANCE, lambda v: v.update(tower_fingerprint="0" * 16))
    with pytest.raises(ValueError, match=r"other weights of tiny.*needs .*0{16}.*, and found"):
        TrainedModel.load(folder)


def test_tensors_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    _edit(folder / CONFIG_FILE, lambda v: v.update(spatial_width=8))
    with pytest.raises(ValueError, match=r"prompts\.safetensors does not fit its config"):
        TrainedModel.load(folder)


def test_a_model_of_a_later_format_is_refused(folder: Path) -> None:
    _edit(folder / PROVENANCE, lambda v: v.update(format_version=2))
    with pytest.raises(ValueError, match="version 2 of the model format"):
        TrainedModel.load(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name != CARD])
@pytest.mark.parametrize("in_run", [False, True])
def test_a_file_that_is_missing_or_empty_is_named(folder: Path, name: str, in_run: bool) -> None:
    if in_run:
        (folder.parent / "result.json").write_text("{}")
    (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{folder / name} .* the whole folder"):
        TrainedModel.load(folder.parent if in_run else folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} has no {name}: copy") as refusal:
        TrainedModel.load(folder.parent if in_run else folder)
    assert ("training command again" in str(refusal.value)) is in_run


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("", "there is no trained model"),
        ("result.json", "has no folder model/"),
        ("checkpoints/x", "is not finished"),
        ("checkpoint_3/x", "is not finished"),
    ],
)
def test_a_folder_without_a_model_is_refused_with_the_next_step(
    tmp_path: Path, there: str, message: str
) -> None:
    if there:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).write_text("{}")
    with pytest.raises(FileNotFoundError, match=message):
        TrainedModel.load(tmp_path)


def test_the_card_has_the_metrics_in_the_format_of_the_hub(folder: Path) -> None:
    _, front, text = (folder / CARD).read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    record = read_record(folder)
    fingerprint = record.provenance.tower_fingerprint
    for part in ("| top1 | 0.5000 |", "0. red_shape: a red shape", fingerprint):
        assert part in text


def test_metrics_are_left_out_for_other_classes(folder: Path, tmp_path: Path) -> None:
    trained = TrainedModel.load(folder)
    trained.with_labels(["up", "down"]).save(tmp_path / "other")
    text = (tmp_path / "other" / CARD).read_text(encoding="utf-8")
    assert "not measured for these labels" in text
    assert "0.5000" not in text
    assert "model-index" not in yaml.safe_load(text.split("---\n")[1])
    assert read_record(tmp_path / "other").provenance.metrics == {}
    same = trained.with_labels(trained.labels or ())
    assert same.provenance.metrics == trained.provenance.metrics


@pytest.mark.parametrize("tower", TINY_TOWERS.values(), ids=TINY_TOWERS.keys())
def test_zero_shot_is_clip_with_the_labels_of_the_caller(
    tower: TinyTower, make_frames: Callable
) -> None:
    model = TrainedModel.zero_shot(tower.name, None, ["red circle", "blue_square"], frames=4)
    assert model.labels == ("red circle", "blue_square")
    frames = make_frames(0, 2, 4, tower.image_size)
    texts = model.embed_texts(["a video of red circle.", "a video of blue square."])
    scale = model.model.logit_scale
    wanted = (scale * model.embed_videos(frames) @ texts.T).softmax(-1)
    torch.testing.assert_close(model.class_probabilities(frames), wanted, rtol=0, atol=1e-6)
    swapped = model.with_labels(["blue_square", "red circle"]).class_probabilities(frames)
    torch.testing.assert_close(swapped, wanted.flip(1), rtol=0, atol=1e-6)


def test_invalid_zero_shot_models_are_refused() -> None:
    with pytest.raises(ValueError, match="random weights"):
        TrainedModel.zero_shot("ViT-B-32", None, ["a"])
    with pytest.raises(ValueError, match="a are repeated"):
        TrainedModel.zero_shot("tiny", None, ["a", "a"])
    with pytest.raises(ValueError, match="a label is empty"):
        TrainedModel.zero_shot("tiny", None, ["a", " "])


def test_a_linear_probe_takes_no_other_labels() -> None:
    probe, _, _ = _trained(replace(BASE, method="linear-probe"))
    with pytest.raises(ValueError, match="knows only the classes of its training"):
        probe.with_labels(["a"])


def test_a_record_survives_a_round_trip(saved: Path) -> None:
    record = read_record(saved)
    assert isinstance(record, ModelRecord)
    assert record.config == BASE
    assert record.preprocessing.decoder().frames == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("walk", "walk "), "the labels walk are repeated"),
        (("caf\u00e9", "cafe\u0301"), "the labels caf\u00e9 are repeated"),
        (("brush_hair", "brush hair"), "'brush_hair' and 'brush hair' become the same text"),
        (("Walk", "walk"), "'Walk' and 'walk' become the same text"),
        (("walk", "\u200b"), "a label is empty"),
    ],
)
def test_labels_that_clip_cannot_tell_apart_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainedModel.zero_shot("tiny", None, labels)
    model = TrainedModel.zero_shot("tiny", None, ["run", "swim"])
    with pytest.raises(ValueError, match=message):
        model.with_labels(labels)


def test_a_model_is_not_loaded_with_another_activation(
    tmp_path: Path,
) -> None:
    openai_format.register_small(tmp_path)
    weights = tmp_path / "weights.pt"
    openai_format.write_archive(openai_format.openai_state(), weights)
    folder = tmp_path / "model"
    TrainedModel.zero_shot(openai_format.SMALL, str(weights), ["a", "b"]).save(folder)
    fingerprint = TrainedModel.load(folder).provenance.tower_fingerprint
    # As older versions wrote it, without the activation.
    old = fingerprint.removesuffix("-quickgelu")
    assert old != fingerprint
    _edit(folder / PROVENANCE, lambda v: v.update(tower_fingerprint=old))
    with pytest.raises(
        ValueError, match=r"was trained with GELU, and its tower .*QuickGELU .*train it again"
    ):
        TrainedModel.load(folder)
